"""Held-out loss per token, perplexity and bits per byte of a set, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lmscale.config import RunConfig
from lmscale.config.training import FIGURES
from lmscale.errors import DataError
from lmscale.evaluation.labelled import (
    MAX_MISTAKES,
    LabelCounts,
    LabelPlan,
    LabelScore,
    plan_labels,
)
from lmscale.files.printing import align_rows
from lmscale.objective.objective import build_preparation
from lmscale.objective.scores import ScoreSums, to_device
from lmscale.ranks.collectives import sum_float64
from lmscale.ranks.mesh import Axis
from lmscale.stream.batches import Preparation, Rows, reads_partners
from lmscale.stream.dataset import Dataset
from lmscale.tokenizer.base import Tokenizer
from lmscale.watch import heartbeat

HELD_OUT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """Sums over the targets of a set, and the figures made of them.

    Bits per byte counts the UTF-8 bytes of the targets only. A document's first token is never a
    target: bos, or in shards without it the first of the text, whose bytes and nll then do not
    count. An end-of-document target adds its nll and no byte, as ending the text costs bits too.
    """

    windows: int
    targets: int
    bytes: int
    """UTF-8 bytes that the targets stand for; of a tokenizer that is not exact, as many as so many
    tokens of the set's documents have on average.
    """
    nll: float
    """Sum of -log p over the targets, in nats."""
    others: Mapping[str, float] = field(default_factory=dict)
    """The objective's other figures of held-out sets."""
    measured: tuple[str, ...] = FIGURES
    """``set_figures`` of the objective."""
    labelled: LabelScore | None = None
    """Where the objective tells classes apart."""

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nll / self.targets

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf  # e^709 is the last double

    @property
    def bits_per_byte(self) -> float:
        """NaN for a set without text."""
        return self.nll / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def figures(self) -> dict[str, float]:
        """By the names that trackers and ``checkpoint.keep_best`` know."""
        counted = {} if self.labelled is None else self.labelled.figures
        return {**{name: getattr(self, name) for name in self.measured}, **self.others, **counted}

    def to_dict(self) -> dict[str, Any]:
        """Sums and figures; None for a figure that is not finite, which JSON cannot say, or that
        the objective does not have. Of classes their counts, too.
        """
        sums = {name: getattr(self, name) for name in ("windows", "targets", "bytes", "nll")}
        figures = {name: v if math.isfinite(v) else None for name, v in self.figures.items()}
        counted = {} if self.labelled is None else self.labelled.to_dict()
        return sums | dict.fromkeys(FIGURES) | figures | counted


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """How the windows of a set are scored; the same for every set of a run."""

    micro_windows: int
    preparation: Preparation
    token_bytes: np.ndarray | None
    """int32 [vocabulary]: UTF-8 bytes of each id, 0 for special ids (``Tokenizer.token_bytes``);
    None: the tokenizer cannot say.
    """
    is_text: np.ndarray
    """bool [vocabulary]: stands for text (``Tokenizer.is_text``)."""
    measured: tuple[str, ...] = FIGURES
    """``set_figures`` of the objective."""
    held_out: tuple[str, ...] = ()
    """Names of the objective's figures to report beside them, but for those of ``labels``."""
    labels: LabelPlan | None = None
    """Where the objective tells classes apart."""
    max_windows: int | None = None
    """At most this many windows, spread evenly over the set; None takes all."""

    def window_numbers(self, dataset: Dataset) -> Sequence[int]:
        """The windows to score, in order.

        The front alone would be biased: best_fit stores the full windows of long documents first.
        """
        return spread_evenly(dataset.num_windows, self.max_windows)

    def bytes_of_ids(self, dataset: Dataset) -> np.ndarray:
        """[vocabulary]: UTF-8 bytes to count for each id. Where the tokenizer cannot say, those of
        the set's documents are shared evenly by their tokens: over a whole set the sum is theirs.
        """
        if self.token_bytes is not None:
            return self.token_bytes
        manifest = dataset.manifest
        return self.is_text * (manifest.text_bytes / max(manifest.text_tokens, 1))


def spread_evenly(total: int, limit: int | None) -> Sequence[int]:
    """At most ``limit`` of the numbers below ``total``, in order; None: all."""
    if limit is None or limit >= total:
        return range(total)
    return [i * total // limit for i in range(limit)]


def plan_evaluation(
    config: RunConfig,
    tokenizer: Tokenizer,
    *,
    max_windows: int | None,
    max_mistakes: int = MAX_MISTAKES,
) -> EvaluationPlan:
    """The plan of a run: its micro-batch and its objective's preparation; of classes, how many
    errors are kept of a set.

    What a preparation draws, it draws by the window's place in its set and ``HELD_OUT_SEED``: the
    same tokens are hidden in every evaluation of every run.
    """
    run = config.run.model_copy(update={"seed": HELD_OUT_SEED})
    labels = plan_labels(config, tokenizer.decode, max_mistakes=max_mistakes)
    counted = () if labels is None else labels.figures
    return EvaluationPlan(
        micro_windows=config.batch.micro_windows,
        preparation=build_preparation(
            config.model_copy(update={"run": run, "objective": config.objective.of_held_out})
        ),
        measured=config.objective.set_figures,
        held_out=tuple(name for name in config.objective.held_out if name not in counted),
        labels=labels,
        token_bytes=tokenizer.token_bytes(),
        is_text=tokenizer.is_text(),
        max_windows=max_windows,
    )


@torch.no_grad()
def evaluate_set(
    objective: nn.Module,
    dataset: Dataset,
    plan: EvaluationPlan,
    *,
    data: Axis,
    device: torch.device,
    advance: Callable[[float], None] = lambda windows: None,
    between_batches: Callable[[], None] = lambda: None,
) -> SetScore:
    """Score a set; every rank calls this and every rank gets the whole set's score.

    Of the plan's windows, data rank r takes those at r, r + data ranks, … All ranks run equally
    many forward passes of the same shape, the last ones filled with windows without targets,
    because ZeRO-3 gathers parameters in every pass. ``objective`` is the run's scoring module or
    the engine around it; its training mode is restored. ``advance`` hears how many windows were
    done, over all ranks. ``between_batches`` is called equally often on all ranks, and may raise on
    all of them.
    """
    numbers = plan.window_numbers(dataset)
    num_windows = num_left = len(numbers)
    if not numbers:
        raise DataError(
            "The evaluation set holds no window: its shards are empty. Build shards from a "
            "held-out part that has documents (corpus.heldout_fraction), or drop the set."
        )
    sums = ScoreSums(("loss", *plan.held_out), device)
    counts = None if plan.labels is None else LabelCounts(plan.labels)
    num_bytes = 0.0
    bytes_of_ids = plan.bytes_of_ids(dataset)
    was_training = objective.training
    objective.eval()
    heartbeat.phase("evaluate")
    try:
        for rows in _batches(dataset, numbers, plan, data):
            arrays = plan.preparation.prepare(rows).arrays
            heartbeat.tick()  # read: at ZeRO 3 the others wait for this rank in their forward pass
            scores = objective(**to_device(arrays, device))
            sums.add(scores)
            if counts is not None:
                counts.add(rows, arrays, scores.choices)
            num_bytes += float(bytes_of_ids[plan.preparation.target_ids(arrays)].sum())
            num_scored = min(plan.micro_windows * data.size, num_left)
            num_left -= num_scored
            heartbeat.tick()
            advance(num_scored)
            between_batches()
    finally:
        objective.train(was_training)
    return _add_up(sums, counts, num_bytes, plan, num_windows=num_windows)


def _add_up(
    sums: ScoreSums,
    counts: LabelCounts | None,
    num_bytes: float,
    plan: EvaluationPlan,
    *,
    num_windows: int,
) -> SetScore:
    """The score of all ranks together, by one all-reduce."""
    own, own_counts = sums.values.tolist(), [] if counts is None else counts.values
    summed = sum_float64([*own, num_bytes, *own_counts])
    summed, covered, summed_counts = summed[: len(own)], summed[len(own)], summed[len(own) + 1 :]
    figures, _ = sums.means(summed)
    nll, targets = summed[:2]
    if not targets:
        raise DataError(
            f"The {num_windows} windows of the evaluation set hold no target: "
            "every document is a single token."
        )
    return SetScore(
        windows=num_windows,
        targets=round(targets),
        bytes=round(covered),
        nll=nll,
        others={name: value for name, value in figures.items() if name != "loss"},
        measured=plan.measured,
        labelled=None if counts is None else counts.finish(summed_counts),
    )


def _batches(
    dataset: Dataset, numbers: Sequence[int], plan: EvaluationPlan, data: Axis
) -> Iterator[Rows]:
    """This rank's windows, the plan's ``micro_windows`` at a time.

    Equally many batches on every rank; a missing window is a copy of the first with length 0.
    """
    largest_share = -(-len(numbers) // data.size)
    own, micro_windows = numbers[data.rank :: data.size], plan.micro_windows
    partners = reads_partners(plan.preparation)
    for first in range(0, largest_share, micro_windows):
        chosen = list(own[first : first + micro_windows])
        filled = [*chosen, *[numbers[0]] * (micro_windows - len(chosen))]
        rows = dataset.read(filled, partners=partners)
        rows.lengths[len(chosen) :] = 0
        yield rows


_COLUMNS = {"perplexity": ("perplexity", ",.2f"), "bits_per_byte": ("bits/byte", ".4f")}


def render_scores(scores: Mapping[str, SetScore]) -> str:
    """The scores as an aligned table, one set a line: no column of what the objective does not
    have, and a dash for what a set does not.
    """
    names = dict.fromkeys(name for score in scores.values() for name in score.figures)
    columns = {name: _COLUMNS.get(name, (name, ".4f")) for name in names}
    rows = [["set", "windows", "targets", *(title for title, _ in columns.values())]]
    for set_name, score in scores.items():
        values = {name: score.figures.get(name, math.nan) for name in columns}
        cells = (
            "-" if math.isnan(values[name]) else f"{values[name]:{style}}"
            for name, (_, style) in columns.items()
        )
        rows.append([set_name, f"{score.windows:,}", f"{score.targets:,}", *cells])
    return align_rows(rows)
