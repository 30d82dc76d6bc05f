"""What one optimizer step gives, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step over all ranks: the same on every rank, except the two times."""

    step: int  # counted from 1: the steps done after it
    first_n: int  # global number of its first sample
    samples: int
    targets: int  # target positions that counted
    digest: int  # of its samples, for the ledger
    loss: float  # nats per target
    z_loss: float  # what the z-loss added per target
    learning_rate: float
    gradient_norm: float  # before clipping
    is_skipped: bool  # a gradient overflowed, the weights did not change
    loss_scale: float
    step_seconds: float  # this rank's, its wait for the next step's data included
    wait_seconds: float  # that wait
    stop_reason: str | None  # why the run should stop after this step, agreed by all ranks
    save_for: tuple[str, ...] = ()  # why it should be saved, beside what is due by the step
