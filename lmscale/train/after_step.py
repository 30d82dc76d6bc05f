"""What follows every step of `lmscale train`: count, record, show, guard, compare, save, score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmscale.ranks.collectives import failing_together
from lmscale.runs.stop import StoppedError, StopRequests
from lmscale.train.votes import (
    ASKED,
    DATA_ERROR,
    LEASE_LOST,
    RANKS_DIFFER,
    SAVE_FAILED,
    StopPoll,
)
from lmscale.watch import heartbeat

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lmscale.guard.guard import Guard
    from lmscale.runs.attempts import AttemptLog
    from lmscale.train import Run, StepReport
    from lmscale.train.hooks import Hook, ProgressCounter
    from lmscale.train.saver import Saver
    from lmscale.train.scoring import Evaluator


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What follows a step on this rank, and what follows the last one."""

    run: Run
    each: tuple[Hook, ...]  # in the order in which they are called
    counter: ProgressCounter
    saver: Saver
    evaluator: Evaluator
    poll: StopPoll
    stop: StopRequests
    stop_requested: Callable[[], str | None]  # why this rank would stop after the step under way
    attempt: AttemptLog | None  # rank 0's

    def __call__(self, report: StepReport) -> None:
        """Raises ``StoppedError`` when no further step shall be begun."""
        reason = report.stop_reason
        if reason in (LEASE_LOST, SAVE_FAILED):
            raise StoppedError(reason)
        if reason == RANKS_DIFFER:
            return  # the next step raises it; nothing of this one may be kept
        for hook in self.each:
            hook(report)
        if ASKED in report.save_for:
            self.stop.obey_save(report.step)
        self.consume_save()
        if report.step == self.run.config.train.steps or reason == DATA_ERROR:
            return  # that one is raised by the next step
        if reason is not None:
            raise StoppedError(reason)
        if report.step in (self.saver.waited_step, self.evaluator.scored_step):
            self.poll.now()  # that may have taken minutes, and a step takes one

    def save_requested(self) -> tuple[str, ...]:
        """Why this rank would save after the step under way, whatever is due."""
        asked = (ASKED,) if self.stop.save_asked() else ()
        return (*asked, *self.saver.wants())

    def consume_save(self) -> None:
        """Forget the request that was obeyed, once its save is committed."""
        self.stop.consume_save(self.saver.committed_step)

    def save_what_is_left(self) -> None:
        step = self.counter.now.step
        if step not in (self.run.start.step, self.saver.saved_step):
            self.saver.save(reason="stop", wait=True)
        self.saver.finish()

    def end(self, reason: str) -> None:
        """Record why the attempt stops."""
        if self.attempt is not None:
            self.attempt.end(reason)


def open_run_attempt(run: Run, began_at: float) -> AbstractContextManager[AttemptLog | None]:
    """Rank 0's record of this attempt, which goes on over rewinds."""
    from lmscale.runs.attempts import open_attempt

    if not run.ranks.is_first:
        return nullcontext()
    return open_attempt(
        run.folder,
        first_step=run.start.step,
        world_size=run.ranks.world_size,
        zero_stage=run.config.engine.zero_stage,
        began_at=began_at,
    )


@contextmanager
def open_hooks(
    run: Run,
    requested: Callable[[], str | None],
    stop: StopRequests,
    attempt: AttemptLog | None,
) -> Iterator[Hooks]:
    """The hooks of a run that goes on at ``run.start``. All ranks together."""
    from lmscale.stream.ledger import open_ledger
    from lmscale.train.compare import RankComparison
    from lmscale.train.evidence import GuardHook
    from lmscale.train.hooks import ProgressCounter, ledger_hook
    from lmscale.train.reporting import open_reporting
    from lmscale.train.saver import Saver, writing_rows
    from lmscale.train.scoring import open_evaluator

    start = run.start
    with ExitStack() as stack:
        counter = ProgressCounter(start)
        guard = _build_guard(run)
        rows: list[Hook] = []
        ledger = trackers = None
        with failing_together():
            if attempt is not None:
                run.lease.check()
                ledger = stack.enter_context(
                    open_ledger(run.folder, next_step=start.step, stream=run.stream, n=start.n)
                )
                reporting = stack.enter_context(
                    open_reporting(run, counter, attempt, more_figures=guard.figures)
                )
                trackers = reporting.trackers
                rows = [ledger_hook(ledger), *reporting.hooks]
            heartbeat.tick()
        saver = Saver(
            run=run, counter=counter, ledger=ledger, trackers=trackers, guard_state=guard.to_json
        )
        stack.callback(saver.close)
        each: list[Hook] = [counter, *(writing_rows(hook, saver) for hook in rows)]

        def asked() -> str | None:
            return SAVE_FAILED if saver.failed() else requested()

        poll = StopPoll(asked)
        evaluator = stack.enter_context(open_evaluator(run, trackers, poll))
        comparison = RankComparison(run)
        guarding = GuardHook(run, guard, comparison.compare_after)
        hooks = Hooks(
            run=run,
            each=(*each, guarding, comparison, saver, evaluator),
            counter=counter,
            saver=saver,
            evaluator=evaluator,
            poll=poll,
            stop=stop,
            stop_requested=asked,
            attempt=attempt,
        )
        stack.callback(hooks.consume_save)  # of what was still under way
        yield hooks


def _build_guard(run: Run) -> Guard:
    from lmscale.guard.guard import Guard

    config = run.config
    segments = run.stream.segments

    def context(n: int) -> dict[str, Any]:
        # Not the last one's: after a rewind a change of the mixture may lie ahead once more.
        in_force = next(segment for segment in reversed(segments) if segment.start <= n)
        mixture = dict(in_force.quotas)
        return {"global_windows": config.batch.global_windows, "mixture": mixture}

    return Guard(
        config.guard,
        minimum_loss_scale=config.engine.loss_scale.minimum,
        vocab_size=config.vocab_size,
        state=run.guard_state,
        rewinds=run.history.rewinds,
        context=context,
    )
