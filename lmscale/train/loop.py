"""The loop: a generator of step reports. Saving, evaluating and logging are its caller's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from lmscale.config import RunConfig
from lmscale.engine import tensor_faults
from lmscale.engine.average import update_average
from lmscale.engine.engine import Engine, Update
from lmscale.engine.schedule import rate_at
from lmscale.engine.step_report import StepReport
from lmscale.errors import CorruptionError, LmscaleError
from lmscale.files import fault_points
from lmscale.objective.scores import Scores, ScoreSums, to_device
from lmscale.ranks.attempt import node_name
from lmscale.ranks.collectives import fail_together, sum_tensor
from lmscale.ranks.limbs import NUM_LIMBS, digest_to_limbs, limbs_to_digest
from lmscale.ranks.seeding import seed_step
from lmscale.runs.stop import StoppedError
from lmscale.stream.batches import Batch, StepBatch
from lmscale.stream.loader import LoadingStopped
from lmscale.stream.mixture import Mixture
from lmscale.train.compare import find_recompute_fault
from lmscale.train.votes import (
    DATA_ERROR,
    LEASE_LOST,
    RANKS_DIFFER,
    SAVE_REASONS,
    STOP_REASONS,
    cast_votes,
    count_votes,
    first_reason,
)
from lmscale.watch import heartbeat


@dataclass(frozen=True, kw_only=True)
class _Agreement:
    """What the ranks say to each other between two steps: sums of the last, totals of the next."""

    sums: tuple[float, ...]  # of the objective's figures, a sum and its count each
    gradient_norm: float  # inf where a rank's is not finite
    own: tuple[float, float]  # this rank's gradient norm, and whether it has skipped the step
    num_skipped: int  # ranks that have skipped the step; some of them: RANKS_DIFFER
    targets: int
    more_targets: tuple[int, ...]  # of the further terms of the loss
    digest: int
    stop_reason: str | None
    save_for: tuple[str, ...]

    @property
    def of_terms(self) -> tuple[int, ...]:
        """The targets of every term of the loss."""
        return (self.targets, *self.more_targets)


def train_steps(
    engine: Engine,
    loader: Iterator[StepBatch],
    config: RunConfig,
    *,
    first_step: int = 0,
    mixture: Mixture | None = None,
    stop: Callable[[], str | None] = lambda: None,
    save: Callable[[], Sequence[str]] = tuple,
) -> Iterator[StepReport]:
    """Do the steps of a run that has done ``first_step`` of them, yielding a report after each.

    ``mixture``: the samples', for the loss of every source where they are of several.
    ``stop`` and ``save`` tell what this rank would have all ranks do after the step under way, by
    ``votes.STOP_REASONS`` and ``votes.SAVE_REASONS``. One all-reduce a step carries the loss, these
    requests, and the next step's digest and target count, which its backward passes need. Where a
    rank cannot read the next step, the report says ``DATA_ERROR``, for the caller to save what is
    done, and the next turn raises that rank's ``LmscaleError`` on all ranks. ``RANKS_DIFFER`` works
    alike, with nothing to be saved. For any other reason the next turn, which may be the first one,
    raises ``StoppedError``.
    """
    build_sums = partial(ScoreSums, config.objective.figures, engine.device, mixture)
    upcoming, error = _take(loader, first_step + 1)
    heartbeat.phase("agree")
    agree = partial(_agree, more_terms=len(config.objective.more_terms))
    none = torch.cat([build_sums().values, torch.zeros(2, device=engine.device)])
    agreed = agree(none, upcoming, DATA_ERROR if error else stop(), ())
    corruption: CorruptionError | None = None
    for step in range(first_step + 1, config.train.steps + 1):
        _end_if_agreed(agreed.stop_reason, corruption or error)
        batch, of_terms, digest = upcoming, agreed.of_terms, agreed.digest
        assert batch is not None, f"the loader ended before step {step} of {config.train.steps}"
        started = time.perf_counter()
        heartbeat.phase("forward", step)
        reseed = partial(seed_step, config.run.seed, step, engine.mesh.data.rank)
        reseed()
        if (every := config.guard.recompute_every_steps) and step % every == 0:
            corruption = find_recompute_fault(engine, batch, step, reseed)
        rate = rate_at(step, config)
        sums = build_sums()
        update = _do_step(engine, batch, step, sums, targets=of_terms, learning_rate=rate)
        upcoming, error = _take(loader, step)
        wait_seconds = 0.0 if upcoming is None else upcoming.wait_seconds
        heartbeat.phase("agree")
        stop_reason = RANKS_DIFFER if corruption else DATA_ERROR if error else stop()
        numbers = torch.cat([sums.values, update.figures])
        agreed = agree(numbers, upcoming, stop_reason, save())
        corruption = corruption or _judge_skip(agreed, engine.mesh.size, step)
        figures, counts = sums.means(agreed.sums)
        heartbeat.end_step(wait_seconds)
        yield StepReport(
            step=step,
            first_n=batch.first_n,
            samples=batch.samples,
            targets=of_terms[0],
            more_targets=of_terms[1:],
            digest=digest,
            figures=figures,
            counts=counts,
            learning_rate=rate,
            gradient_norm=agreed.gradient_norm,
            is_skipped=agreed.num_skipped > 0,
            loss_scale=update.loss_scale,
            step_seconds=time.perf_counter() - started,
            wait_seconds=wait_seconds,
            data_seconds=batch.wait_seconds,
            stop_reason=agreed.stop_reason,
            save_for=agreed.save_for,
        )
    if agreed.stop_reason == RANKS_DIFFER:
        fail_together(corruption)  # of the very last step


def _judge_skip(agreed: _Agreement, world_size: int, step: int) -> CorruptionError | None:
    """What a rank says that has skipped a step alone, or not skipped one with the others."""
    norm, is_skipped = agreed.own[0], bool(agreed.own[1])
    num_skipped = agreed.num_skipped
    if num_skipped in (0, world_size) or is_skipped == (2 * num_skipped > world_size):
        return None
    did = "skipped the update" if is_skipped else "did the update"
    return CorruptionError(
        f"{node_name()}: this rank {did} of step {step} (its gradient norm is {norm:.6g}), "
        "and most others did not: its memory or arithmetic is wrong, and so are its weights by "
        "now. Nothing is saved. Check that node before it is used again."
    )


def _end_if_agreed(stop_reason: str | None, error: LmscaleError | None) -> None:
    """Raise on all ranks what they have agreed upon; ``error`` is this rank's, if it has one."""
    if stop_reason in (DATA_ERROR, RANKS_DIFFER):
        fail_together(error)
    if stop_reason is not None:
        raise StoppedError(stop_reason)


def _do_step(
    engine: Engine,
    batch: StepBatch,
    step: int,
    sums: ScoreSums,
    *,
    targets: Sequence[int],
    learning_rate: float,
) -> Update:
    """Accumulate the gradient of this rank's micro-batches, adding to ``sums``; then update
    the weights and their average."""
    fault_points.hit("step.begin", step=step)
    tensor_faults.flip_gradient(engine.module, step)
    engine.accumulate(
        [partial(_forward, engine, micro, sums) for micro in batch.micro_batches],
        targets=targets[0],
        more_targets=targets[1:],
        micro_batches=len(batch.micro_batches),
    )
    heartbeat.phase("step")
    fault_points.hit("step.update", step=step)
    update = engine.update(learning_rate=learning_rate)
    update_average(engine, step)
    tensor_faults.flip_weight(engine.module, step)
    return update


def _take(loader: Iterator[StepBatch], step: int) -> tuple[StepBatch | None, LmscaleError | None]:
    """The next step's batch, or why it cannot be read; neither after the last one, nor where a stop
    is asked for meanwhile. ``step``: the one under way.
    """
    heartbeat.phase("data", step)
    try:
        return next(loader, None), None
    except LoadingStopped:
        return None, None
    except LmscaleError as error:
        return None, error


def _forward(engine: Engine, micro: Batch, sums: ScoreSums) -> Tensor:
    heartbeat.phase("forward")
    with heartbeat.own_work(engine.device):
        scores: Scores = engine(**to_device(micro.arrays, engine.device))
    sums.add(scores, micro.first_n)
    heartbeat.phase("backward")  # which the engine does with what is returned
    return tensor_faults.poison(scores.terms())


def _agree(
    numbers: Tensor,
    upcoming: StepBatch | None,
    stop_reason: str | None,
    save_reasons: Sequence[str],
    *,
    more_terms: int = 0,
) -> _Agreement:
    """One sum over all ranks: this step's figures and its requests, the next step's totals.

    ``numbers``: this rank's sums, its gradient norm, and whether it has skipped the step, fp64 on
    the device. The norm should be the same on all ranks; the mean surely is, and so is what follows
    from it. ``more_terms``: of the loss, beside the first, each with a target count of its own.

    The only thing in a step for which lmscale itself waits for the device: what comes from there is
    summed there, and read together.
    """
    count, norm = len(numbers) - 2, numbers[-2:-1]
    is_finite = torch.isfinite(norm)
    votes = [
        1.0,
        *cast_votes([stop_reason], STOP_REASONS),
        *cast_votes(save_reasons, SAVE_REASONS),
        float(0 if upcoming is None else upcoming.targets),
        *digest_to_limbs(0 if upcoming is None else upcoming.digest),
        *([0.0] * more_terms if upcoming is None else map(float, upcoming.more_targets)),
    ]
    device = numbers.device
    vector = torch.cat(
        [
            numbers[:count],
            torch.where(is_finite, norm, 0.0),
            (~is_finite).double(),
            numbers[-1:],
            torch.tensor(votes, dtype=torch.float64).to(device, non_blocking=True),
        ]
    )
    *summed_all, own_norm, own_skipped = torch.cat([sum_tensor(vector), numbers[-2:]]).tolist()
    summed = iter(summed_all)

    def take(count: int) -> list[float]:
        return list(islice(summed, count))

    summed_figures = tuple(take(count))
    norms, num_nonfinite, num_skipped, num_ranks = take(4)
    stop_reason = first_reason(take(len(STOP_REASONS)))
    is_split = 0 < num_skipped < num_ranks
    return _Agreement(
        sums=summed_figures,
        gradient_norm=math.inf if num_nonfinite else norms / num_ranks,
        own=(own_norm, own_skipped),
        num_skipped=int(num_skipped),
        stop_reason=RANKS_DIFFER if is_split and stop_reason != LEASE_LOST else stop_reason,
        save_for=count_votes(take(len(SAVE_REASONS)), SAVE_REASONS),
        targets=int(*take(1)),
        digest=limbs_to_digest(take(NUM_LIMBS)),
        more_targets=tuple(map(int, take(more_terms))),
    )
