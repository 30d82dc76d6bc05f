"""How often a run reads its text again, and what that is still worth: Muennighoff et al. 2023,
"Scaling Data-Constrained Language Models", equation 5 and appendix A.

A source of U different tokens that is read D / U times is worth as much as D' different ones:
D' = U + U · R* · (1 - exp(-R / R*)), with R = D / U - 1 repetitions and R* = 15.39. It was fitted
to models of 7M to 9B parameters on up to 1,500 epochs of English web text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lmscale.config import RunConfig
from lmscale.config.data import StreamConfig, WindowShape
from lmscale.errors import LmscaleError
from lmscale.files.locations import protocol_of
from lmscale.plan.losses import MUENNIGHOFF
from lmscale.shards.manifest import load_manifest
from lmscale.stream.mixture import plan_quotas
from lmscale.stream.packing import count_concat

REPETITIONS = 15.387756  # R*_D: by then a repeated token has been worth 1 - 1/e of a new one
EXCESS = 5.309743  # R*_N: the same of parameters beyond those that the text is best spent on
# What the paper says in words: up to 4 epochs the loss is hardly another than with new text, and
# by 40 epochs repeating is worth nothing.
FREE_EPOCHS, LAST_EPOCHS = 4, 40


def effective_tokens(different: float, trained: float) -> float:
    """How many different tokens would be worth as much as ``trained`` ones of ``different``."""
    if trained <= different:
        return trained
    repetitions = trained / different - 1
    return different * (1 - REPETITIONS * math.expm1(-repetitions / REPETITIONS))


def worth_of_next(epochs: float) -> float:
    """What one more token is worth after so many epochs, of a new one."""
    return math.exp(-max(0.0, epochs - 1) / REPETITIONS)


def epochs_until(worth: float) -> float:
    """Epochs after which one more token is worth no more than this."""
    return 1 - REPETITIONS * math.log(worth)


def constrained_loss(*, parameters: float, different: float, trained: float) -> float:
    """The loss in nats per token of C4 by the paper's own law, which counts excess parameters down
    as it counts repeated tokens.
    """
    unique = min(different, trained)
    fitting = min(parameters, MUENNIGHOFF.best_parameters_of_tokens(unique))
    excess = parameters / fitting - 1
    worth = fitting * (1 - EXCESS * math.expm1(-excess / EXCESS))
    return MUENNIGHOFF.loss(worth, effective_tokens(different, trained))


@dataclass(frozen=True, kw_only=True)
class SourceUse:
    """What a run takes of a source."""

    name: str
    share: float  # of the samples
    trained_tokens: float
    different_tokens: int | None  # those of its shards, where they are there
    epochs: float | None
    effective_tokens: float  # all of the trained ones where the source is not known
    worth_of_next: float | None  # at the end of the run
    why_unknown: str = ""

    def describe(self) -> Iterator[str]:
        """What should be changed, if anything."""
        if self.epochs is None or self.different_tokens is None:
            return
        if self.epochs > LAST_EPOCHS:
            yield (
                f"stream.sources.{self.name} is read {self.epochs:.3g} times: beyond {LAST_EPOCHS} "
                "epochs more of the same is worth nothing (Muennighoff et al. 2023). Lower its "
                "weight, or train.steps, or add text"
            )
        elif self.epochs > FREE_EPOCHS:
            lost = 1 - self.effective_tokens / self.trained_tokens
            yield (
                f"stream.sources.{self.name} is read {self.epochs:.3g} times: {100 * lost:.0f} % "
                "of its tokens are worth nothing, and one more is worth "
                f"{100 * worth_of_next(self.epochs):.0f} % of a new one; up to {FREE_EPOCHS} "
                "epochs are as good as new text (Muennighoff et al. 2023)"
            )


def plan_sources(config: RunConfig) -> tuple[SourceUse, ...]:
    """Every source of the mixture that is read, the largest first."""
    stream, window = config.stream, config.window
    weights = {name: source.weight for name, source in stream.sources.items()}
    if not weights:
        return ()
    quotas = plan_quotas(weights, stream.mixture_block)
    samples = config.samples_after(config.train.steps)
    uses = [
        _plan_source(name, stream, window, share=quota / stream.mixture_block, samples=samples)
        for name, quota in quotas.items()
    ]
    return tuple(sorted(uses, key=lambda use: (-use.share, use.name)))


def _plan_source(
    name: str, stream: StreamConfig, window: WindowShape, *, share: float, samples: int
) -> SourceUse:
    trained = samples * share * window.stride
    counted, why = _count(stream.sources[name].shards, stream, window)
    if counted is None:
        return SourceUse(
            name=name,
            share=share,
            trained_tokens=trained,
            different_tokens=None,
            epochs=None,
            effective_tokens=trained,
            worth_of_next=None,
            why_unknown=why,
        )
    tokens, windows = counted
    epochs = samples * share / windows
    return SourceUse(
        name=name,
        share=share,
        trained_tokens=trained,
        different_tokens=tokens,
        epochs=epochs,
        effective_tokens=effective_tokens(trained / epochs, trained),
        worth_of_next=worth_of_next(epochs),
    )


def _count(
    location: str, stream: StreamConfig, window: WindowShape
) -> tuple[tuple[int, float] | None, str]:
    """Tokens and windows of a folder of shards, or why they are not known.

    What best fit makes of them is known once they were packed: its windows are full but for some
    hundredths of a percent, which is what is taken here.
    """
    if protocol_of(location) is not None:
        return None, f"{location} is not asked"
    try:
        manifest = load_manifest(location)
    except LmscaleError as error:
        return None, str(error.problems[0])
    if stream.packing == "concat":
        windows = float(sum(count_concat(entry.tokens, window) for entry in manifest.shards))
    else:
        windows = manifest.tokens / window.tokens
    if windows == 0:
        return None, f"{location} does not fill a single window"
    return (manifest.tokens, windows), ""


def sum_up(sources: tuple[SourceUse, ...]) -> Mapping[str, float]:
    """``trained`` tokens of all sources, and the ``effective`` ones that they are worth."""
    return {
        "trained": sum(source.trained_tokens for source in sources),
        "effective": sum(source.effective_tokens for source in sources),
    }
