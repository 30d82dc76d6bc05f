"""The section ``objective``: what is predicted, and how it is scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveInt

from lmscale.config.data import StreamConfig, WindowShape
from lmscale.config.denoiser import DenoiserConfig, pair_lengths, plan_raw_tokens
from lmscale.config.kinds import Ability, Kinds
from lmscale.config.masked import MaskedConfig, MaskedNextConfig, MaskedOrderConfig
from lmscale.config.model import ModelConfig
from lmscale.config.objective_base import NextTokenConfig, ObjectiveConfig
from lmscale.config.supervised import (
    ClassesConfig,
    CompletionConfig,
    NumbersConfig,
    PairsConfig,
    TagsConfig,
)


class CausalConfig(NextTokenConfig):
    """Causal language modelling: predict the next token."""

    implementation = "lmscale.objective.causal:CAUSAL"

    name: Literal["causal"] = "causal"


class DistillConfig(NextTokenConfig):
    """Distillation (Hinton et al. 2015): predict the next token as it is, and as another run's
    model does, whose vocabulary is the same. Held-out losses are of the tokens alone.
    """

    implementation = "lmscale.objective.distill:DISTILL"
    free = NextTokenConfig.free | {"teacher", "teacher_share", "temperature"}
    figures = ("loss", "z_loss", "teacher_kl")

    name: Literal["distill"]
    teacher: str = Field(min_length=1)
    """The other run: its folder, or FOLDER@STEP; without a step its newest sound checkpoint, when
    this run begins. Every rank holds it whole, in the run's precision. It may be moved, but the run
    goes on with no other checkpoint.
    """
    teacher_share: float = Field(default=0.5, ge=0, le=1)
    """Weight of temperature² · KL(teacher ‖ student) in the loss; the tokens' own loss has the
    rest.
    """
    temperature: float = Field(default=1.0, ge=0.01, le=1000)
    """Both models' logits are divided by it, before they are compared."""


class PrefixConfig(NextTokenConfig):
    """Prefix language modelling: see a document's beginning as a whole, and predict its rest. Masks
    are of all pairs of tokens, without FlexAttention.
    """

    needs = frozenset({Ability.PREFIX})
    shows_prefixes = True
    implementation = "lmscale.objective.prefix:PREFIX"

    name: Literal["prefix"] = "prefix"

    def find_model_problems(self, model: ModelConfig) -> Iterator[str]:
        if getattr(model, "segments", 1) > 1:
            yield (
                "objective.name = 'prefix' shows a prefix as a whole, but model.segments = "
                f"{getattr(model, 'segments', 1)} cuts the window. Set model.segments to 1"
            )


class FillMiddleConfig(NextTokenConfig):
    """Fill-in-the-middle: documents whose middle stands behind what follows it (Bavarian et al.
    2022), among others as they are.
    """

    implementation = "lmscale.objective.fill_middle:FILL_MIDDLE"

    name: Literal["fill_middle"] = "fill_middle"
    rate: float = Field(default=0.5, ge=0, le=1)
    """Share of the documents that are rearranged."""
    suffix_first: float = Field(default=0.5, ge=0, le=1)
    """Share of these whose suffix comes before the prefix (SPM), rather than behind it (PSM)."""

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("prefix", "suffix", "middle")


class PairConfig(NextTokenConfig):
    """The keys of the objectives that read one sequence and write another one."""

    needs = frozenset({Ability.CROSS})
    figures = ("loss", "z_loss", "accuracy")
    held_out = ("accuracy",)

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        if stream.mask_documents:
            yield (
                f"objective.name = {self.name!r} takes a window as one text, whose spans may cross "
                "from one document into the next. Set stream.mask_documents: false"
            )
        longest = max(self.pair_lengths(stream.sequence_length) or (0,))
        if longest > stream.sequence_length:
            yield (
                f"stream.sequence_length = {stream.sequence_length} is too short for the objective "
                f"{self.name}: give at least {longest}"
            )


class SpanConfig(PairConfig):
    """The keys of the objectives that leave out spans."""

    implementation = "lmscale.objective.spans:SPANS"

    sentinels: PositiveInt = Field(default=100, le=10_000)
    """Ids that stand for spans: no window may have more of them."""

    @property
    def mixture(self) -> tuple[DenoiserConfig, ...]:
        raise NotImplementedError

    @property
    def modes(self) -> tuple[str, ...]:
        """Those of its denoisers."""
        return tuple(sorted({denoiser.mode for denoiser in self.mixture} - {""}))

    @property
    def added_ids(self) -> tuple[str, ...]:
        sentinels = (f"sentinel_{number}" for number in range(self.sentinels))
        return ("start", "end", *(f"mode_{mode}" for mode in self.modes), *sentinels)

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=plan_raw_tokens(self.mixture, sequence_length), overlap=0)

    def pair_lengths(self, sequence_length: int) -> tuple[int, int]:
        return pair_lengths(self.mixture, self.window(sequence_length).tokens)

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        yield from super().find_stream_problems(stream)
        tokens = self.window(stream.sequence_length).tokens
        most = max(denoiser.plan(tokens)[1] for denoiser in self.mixture)
        if most > self.sentinels:
            yield (
                f"objective.sentinels = {self.sentinels}, but by rate and mean_span windows of "
                f"{tokens} tokens have up to {most} spans. Raise it, or lower "
                "stream.sequence_length"
            )


class SpansConfig(SpanConfig):
    """Span corruption (Raffel et al. 2020): spans are left out, each for a sentinel, and predicted
    behind it.
    """

    name: Literal["spans"]
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that lie in spans."""
    mean_span: float = Field(default=3.0, ge=1, le=1e9)
    """Mean tokens of a span. One longer than the share of a window makes its end the only span."""

    @property
    def mixture(self) -> tuple[DenoiserConfig, ...]:
        return (DenoiserConfig(rate=self.rate, mean_span=self.mean_span),)


def _ul2_denoisers() -> dict[str, DenoiserConfig]:
    shares = {
        "regular_3": ("R", 0.15, 3), "regular_8": ("R", 0.15, 8),
        "sequential": ("S", 0.25, 1e9),
        "extreme_3": ("X", 0.5, 3), "extreme_8": ("X", 0.5, 8),
        "extreme_64": ("X", 0.15, 64), "extreme_64_half": ("X", 0.5, 64),
    }  # fmt: skip
    return {
        name: DenoiserConfig.model_validate({"mode": mode, "rate": rate, "mean_span": mean})
        for name, (mode, rate, mean) in shares.items()
    }


class DenoisersConfig(SpanConfig):
    """A mixture of denoisers (UL2, Tay et al. 2023): each window is one's, drawn by its weight."""

    figures = ("loss", "z_loss", "accuracy", "loss_R", "loss_S", "loss_X")

    name: Literal["denoisers"]
    denoisers: dict[str, DenoiserConfig] = Field(default_factory=_ul2_denoisers, min_length=1)

    @property
    def mixture(self) -> tuple[DenoiserConfig, ...]:
        return tuple(self.denoisers.values())

    @property
    def held_out(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("accuracy", *(f"loss_{mode}" for mode in self.modes))


class InfillConfig(PairConfig):
    """Text infilling and sentence permutation (BART, Lewis et al. 2020): the text is predicted as
    it was, from one with sentences in another order and spans behind a mask each.
    """

    implementation = "lmscale.objective.infill:INFILL"

    name: Literal["infill"]
    rate: float = Field(default=0.3, gt=0, lt=1)
    """Share of the tokens that lie in spans."""
    mean_span: float = Field(default=3.0, ge=1, le=100)
    """Mean tokens of a span, by a Poisson distribution: some hold nothing."""
    permute_sentences: bool = True

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("start", "end", "mask")

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=max(1, sequence_length - 1), overlap=0)

    def pair_lengths(self, sequence_length: int) -> tuple[int, int]:
        tokens = self.window(sequence_length).tokens
        return tokens + 1, tokens + 1  # with the end


OBJECTIVES = Kinds(
    ObjectiveConfig,
    key="name",
    group="lmscale.objectives",
    own={
        "causal": CausalConfig,
        "distill": DistillConfig,
        "fill_middle": FillMiddleConfig,
        "masked": MaskedConfig,
        "masked_order": MaskedOrderConfig,
        "masked_next": MaskedNextConfig,
        "prefix": PrefixConfig,
        "spans": SpansConfig,
        "denoisers": DenoisersConfig,
        "infill": InfillConfig,
        "pairs": PairsConfig,
        "completion": CompletionConfig,
        "classes": ClassesConfig,
        "numbers": NumbersConfig,
        "tags": TagsConfig,
    },
)
