"""The loop: a generator of step reports. Saving, evaluating and logging are the caller's
for-loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lmscale.config.training import EngineConfig
from lmscale.engine import Engine, learning_rate
from lmscale.errors import LmscaleError
from lmscale.objective import ObjectiveOutput
from lmscale.runtime import heartbeat
from lmscale.runtime.collectives import fail_together, sum_float64
from lmscale.runtime.seeding import seed_step
from lmscale.runtime.stop import StoppedError
from lmscale.runtime.votes import DATA_ERROR, STOP_REASONS, cast_vote, count_votes
from lmscale.stream.batches import MicroBatch, StepBatch
from lmscale.stream.ledger import NUM_LIMBS, digest_to_limbs, limbs_to_digest
from lmscale.stream.loader import LoadingStopped


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


@dataclass(frozen=True, kw_only=True)
class _StepTotals:
    """What the ranks must agree on before a step begins."""

    targets: int
    digest: int


def train_steps(
    engine: Engine,
    loader: Iterator[StepBatch],
    config: EngineConfig,
    *,
    first_step: int,
    total_steps: int,
    seed: int,
    rank: int,
    stop_requested: Callable[[], str | None] = lambda: None,
) -> Iterator[StepReport]:
    """Do the steps after ``first_step`` up to ``total_steps``, yielding a report after each.

    One all-reduce a step carries the loss, the requests to stop, and the next step's target count
    and digest: the count must be known before the next step's first backward pass. It also tells
    whether a rank cannot read the next step: the report then says ``DATA_ERROR``, for the caller to
    save what is done, and the next turn raises that rank's ``LmscaleError`` on all of them. For any
    other reason the next turn, which may be the first one, raises ``StoppedError``.
    """
    heartbeat.phase("data", first_step + 1)
    batch, error = _take(loader)
    heartbeat.phase("agree")
    asked = DATA_ERROR if error else stop_requested()
    totals, _, stop_reason = _agree(None, batch, asked)
    for step in range(first_step + 1, total_steps + 1):
        if stop_reason == DATA_ERROR:
            fail_together(error)
        if stop_reason is not None:
            raise StoppedError(stop_reason)
        if batch is None:  # the loader was opened for exactly these steps
            raise AssertionError(f"the loader ended before step {step} of {total_steps}")
        started = time.perf_counter()
        heartbeat.phase("forward", step)
        seed_step(seed, step, rank)
        rate = learning_rate(
            config.schedule, peak=config.optimizer.lr, step=step, total_steps=total_steps
        )
        sums = torch.zeros(2, dtype=torch.float64, device=engine.device)  # nll, z
        engine.accumulate(
            [partial(_forward, engine, micro, sums) for micro in batch.micro_batches],
            targets=totals.targets,
        )
        heartbeat.phase("step")
        update = engine.update(learning_rate=rate)
        done, done_totals = batch, totals
        heartbeat.phase("data")
        batch, error = _take(loader)
        heartbeat.phase("agree")
        asked = DATA_ERROR if error else stop_requested()
        totals, (nll, z), stop_reason = _agree(sums, batch, asked)
        heartbeat.end_step(0.0 if batch is None else batch.wait_seconds)
        yield StepReport(
            step=step,
            first_n=done.first_n,
            samples=done.samples,
            targets=done_totals.targets,
            digest=done_totals.digest,
            loss=nll / done_totals.targets,
            z_loss=z / done_totals.targets,
            learning_rate=rate,
            gradient_norm=update.gradient_norm,
            is_skipped=update.is_skipped,
            loss_scale=update.loss_scale,
            step_seconds=time.perf_counter() - started,
            wait_seconds=0.0 if batch is None else batch.wait_seconds,
            stop_reason=stop_reason,
        )


def _take(loader: Iterator[StepBatch]) -> tuple[StepBatch | None, LmscaleError | None]:
    """The next step, None behind the last one or when asked to stop, or why it cannot be read."""
    try:
        return next(loader, None), None
    except LoadingStopped:
        return None, None
    except LmscaleError as error:
        return None, error


def _forward(engine: Engine, micro: MicroBatch, sums: Tensor) -> Tensor:
    heartbeat.phase("forward")
    with heartbeat.own_work(engine.device):
        output: ObjectiveOutput = engine(*to_device(micro, engine.device))
    sums += torch.stack([output.nll.total, output.z]).double()
    heartbeat.phase("backward")  # which the engine does with what is returned
    return output.loss


def to_device(micro: MicroBatch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, T+1], starts [N] and lengths [B] on the device, in the loader's compact types."""
    tensors = []
    for array in (micro.tokens, micro.starts, micro.lengths):
        # torch wants writable memory, though nobody writes; what a worker sent is not.
        writable = array if array.flags.writeable else np.array(array)
        tensor = torch.from_numpy(writable)
        if device.type == "cuda":
            tensor = tensor.pin_memory().to(device, non_blocking=True)
        tensors.append(tensor)
    tokens, starts, lengths = tensors
    return tokens, starts, lengths


def _agree(
    sums: Tensor | None, upcoming: StepBatch | None, stop_reason: str | None
) -> tuple[_StepTotals, tuple[float, float], str | None]:
    """One sum over all ranks: this step's losses, its requests to stop, the next step's totals."""
    losses = [0.0, 0.0] if sums is None else sums.tolist()
    requests = cast_vote(stop_reason)
    targets = 0 if upcoming is None else upcoming.targets
    limbs = digest_to_limbs(0 if upcoming is None else upcoming.digest)
    agreed = sum_float64([*losses, *requests, float(targets), *limbs])
    nll, z = agreed[:2]
    votes, summed_limbs = agreed[2 : 2 + len(STOP_REASONS)], agreed[-NUM_LIMBS:]
    totals = _StepTotals(targets=int(agreed[-1 - NUM_LIMBS]), digest=limbs_to_digest(summed_limbs))
    return totals, (nll, z), count_votes(votes)
