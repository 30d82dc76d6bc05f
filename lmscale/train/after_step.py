"""What follows every step of a run: count, record, show, judge, compare, save, score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from lmscale.engine.step_report import StepReport
from lmscale.errors import LmscaleError
from lmscale.guard.guard import Guard
from lmscale.guard.state import GUARD
from lmscale.ranks.collectives import failing_together
from lmscale.runs.attempts import AttemptLog
from lmscale.runs.profiles import ProfilePlan
from lmscale.runs.stop import StoppedError, StopRequests
from lmscale.stream.ledger import Ledger, LedgerRow, open_ledger
from lmscale.train.assemble import Run
from lmscale.train.compare import RankComparison
from lmscale.train.evidence import judge
from lmscale.train.exporting import Exporter, open_exporter
from lmscale.train.kept import let_go_of_exported
from lmscale.train.pace import open_pace
from lmscale.train.profiling import open_profiler
from lmscale.train.progress import Hook, ProgressCounter
from lmscale.train.reporting import MetricsHook, progress_hook
from lmscale.train.saver import Saver
from lmscale.train.scoring import Evaluator, open_evaluator, open_run_trackers
from lmscale.train.votes import ASKED, DATA_ERROR, LEASE_LOST, RANKS_DIFFER, SAVE_FAILED, StopPoll
from lmscale.watch import heartbeat


@dataclass(frozen=True, kw_only=True)
class AfterStep:
    """What follows a step on this rank, and what follows the last one."""

    run: Run
    hooks: tuple[Hook, ...]
    counter: ProgressCounter
    saver: Saver
    evaluator: Evaluator
    exporter: Exporter
    stop: StopRequests
    stop_reason: Callable[[], str | None]  # why this rank would stop after the step under way

    def __call__(self, report: StepReport) -> None:
        """Raises ``StoppedError`` when no further step shall be begun."""
        reason = report.stop_reason
        if reason in (LEASE_LOST, SAVE_FAILED):
            raise StoppedError(reason)
        if reason == RANKS_DIFFER:
            return  # the next step raises it; nothing of this one may be kept
        for hook in self.hooks:
            hook(report)
        if ASKED in report.save_for:
            self.stop.obey_save(report.step)
        self.consume_save()
        if report.step == self.run.config.train.steps or reason == DATA_ERROR:
            return  # that one is raised by the next step
        if reason is not None:
            raise StoppedError(reason)
        if self.evaluator.early_stop is not None:
            return  # that was the last one: a request may not make the run end otherwise
        if report.step in (self.saver.waited_step, self.evaluator.scored_step):
            self.evaluator.poll.now()  # it took long: ask now, not after one more step

    def has_work(self) -> bool:
        """Whether a stop has something to save: a step was done here."""
        return self.counter.now.step != self.run.start.step

    def save_reasons(self) -> tuple[str, ...]:
        """Why this rank would save after the step under way, whatever is due."""
        asked = (ASKED,) if self.stop.save_asked() else ()
        return (*asked, *self.saver.wants())

    def consume_save(self) -> None:
        """Forget the request that was obeyed, once its save is committed."""
        self.stop.consume_save(self.saver.committed_step)

    def end_early(self) -> None:
        """What follows the last step, of a run that ends before ``train.steps``."""
        self.saver.save_last()
        self.evaluator.score_early_end(self.counter.now.step)

    def finish_exports(self) -> None:
        """After a good end; a request to stop ends the wait."""
        self.exporter.finish(lambda: self.stop_reason() is not None)
        let_go_of_exported(self.run)

    def save_what_is_left(self) -> None:
        if self.has_work() and self.counter.now.step != self.saver.saved_step:
            self.saver.save(reason="stop", wait=True)
        self.saver.finish()


@contextmanager
def open_after_step(
    run: Run,
    stop: StopRequests,
    stop_reason: Callable[[], str | None],
    attempt: AttemptLog | None,
    profile: ProfilePlan | None = None,
) -> Iterator[AfterStep]:
    """The hooks of a run from ``run.start`` on. All ranks together; ``attempt`` is rank 0's."""
    with ExitStack() as stack:
        counter, guard = ProgressCounter(run.start), build_guard(run)
        comparison = RankComparison(run)
        rows: tuple[Hook, ...] = ()  # of rank 0
        ledger = trackers = None
        with failing_together():
            if attempt is not None:
                run.lease.check()
                step, n = run.start.step, run.start.n
                opened = open_ledger(run.folder, next_step=step, stream=run.stream, n=n)
                ledger = stack.enter_context(opened)
                trackers = stack.enter_context(open_run_trackers(run, lambda: counter.now.tokens))
                pace = stack.enter_context(open_pace(run.config, step))
                rows = (
                    partial(_record, ledger),
                    MetricsHook(run, counter, trackers, attempt, guard.figures, pace, profile),
                    stack.enter_context(progress_hook(run)),
                )
            heartbeat.tick()
        states = {GUARD: guard.to_json}
        saver = Saver(
            run=run, counter=counter, ledger=ledger, trackers=trackers, more_states=states
        )
        stack.callback(saver.close)
        asked = partial(_ask, saver, stop_reason)
        evaluator = stack.enter_context(open_evaluator(run, trackers, StopPoll(asked)))
        exporter = stack.enter_context(open_exporter(run, lambda: saver.committed_step))
        # In this order. Nothing is saved that was not recorded before, nor before it was judged;
        # ledger, metrics and progress of a step are written before anything can end it.
        hooks = (
            counter,
            *(partial(_write_rows, hook, saver) for hook in rows),
            partial(judge, run, guard, compare=comparison.compare),
            comparison,
            saver,
            evaluator,
            exporter,
            *stack.enter_context(open_profiler(profile, run, trackers)),
        )
        after_step = AfterStep(
            run=run,
            hooks=hooks,
            counter=counter,
            saver=saver,
            evaluator=evaluator,
            exporter=exporter,
            stop=stop,
            stop_reason=asked,
        )
        stack.callback(after_step.consume_save)  # of what was still under way
        yield after_step


def _ask(saver: Saver, stop_reason: Callable[[], str | None]) -> str | None:
    return SAVE_FAILED if saver.failed() else stop_reason()


def _write_rows(hook: Hook, saver: Saver, report: StepReport) -> None:
    """Once a row is refused, as by a full disk, none follows, and the saver ends all ranks."""
    if not saver.has_refused:
        try:
            hook(report)
        except LmscaleError as error:
            saver.refuse(error)


def _record(ledger: Ledger, report: StepReport) -> None:
    row = LedgerRow(
        step=report.step - 1,  # the ledger counts from 0
        first_n=report.first_n,
        samples=report.samples,
        tokens=report.targets,
        digest=report.digest,
        more_tokens=report.more_targets,
    )
    ledger.append(row)


def build_guard(run: Run) -> Guard:
    config = run.config
    segments = run.stream.segments

    def context(n: int) -> dict[str, Any]:
        # Not the last one's: after a rewind a change of the mixture may lie ahead once more.
        in_force = next(segment for segment in reversed(segments) if segment.start <= n)
        return {"mixture": dict(in_force.quotas)}

    return Guard(
        config.guard,
        minimum_loss_scale=config.engine.loss_scale.minimum,
        vocab_size=config.vocab_size,
        state=run.guard_state,
        rewinds=run.history.rewinds,
        context=context,
    )
