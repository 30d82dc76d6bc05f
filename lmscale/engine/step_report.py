"""The result of an optimizer step, over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """An optimizer step over all ranks: equal on every rank, except the times."""

    step: int  # counted from 1: the steps done after it
    first_n: int  # global number of its first sample
    samples: int
    targets: int  # target positions that counted
    digest: int  # of its samples, for the ledger
    more_targets: tuple[int, ...] = ()  # of each further term of the loss
    figures: Mapping[str, float]  # the objective's, by name: each a sum over its count
    counts: Mapping[str, float]  # those counts
    learning_rate: float
    gradient_norm: float  # before clipping
    is_skipped: bool  # a gradient overflowed, the weights did not change
    loss_scale: float
    step_seconds: float  # this rank's, its wait for the next step's data included
    wait_seconds: float  # that wait
    data_seconds: float = 0.0  # the wait for this step's data, in the time of the step before
    stop_reason: str | None  # why the run should stop after this step, agreed by all ranks
    save_for: tuple[str, ...] = ()  # why it should be saved, beside what is due by the step

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.figures["loss"]


def mean_figures(reports: Iterable[StepReport]) -> dict[str, float]:
    """The figures of some steps together, weighted by their counts."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for report in reports:
        for name, value in report.figures.items():
            sums[name] = sums.get(name, 0) + value * report.counts[name]
            counts[name] = counts.get(name, 0) + report.counts[name]
    return {name: total / counts[name] for name, total in sums.items()}
