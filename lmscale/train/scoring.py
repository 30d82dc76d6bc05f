"""Held-out loss while a run trains, and once over the whole sets when it is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain

from lmscale.checkpoint.fragments import refresh_parameters
from lmscale.config.training import EvaluationConfig
from lmscale.engine.average import averages_of, exchange
from lmscale.engine.engine import Engine
from lmscale.engine.step_report import StepReport
from lmscale.evaluation.held_out import open_evaluation_sets, warn_of_other_writing
from lmscale.evaluation.perplexity import (
    EvaluationPlan,
    evaluate_set,
    plan_evaluation,
    render_scores,
)
from lmscale.evaluation.task_scores import PREFIX
from lmscale.files.jsonl import Row, sift_rows
from lmscale.files.printing import count_of
from lmscale.files.run_files import METRICS_FILE
from lmscale.files.run_rows import AT_END, FIGURES, OF_AVERAGE
from lmscale.ranks.collectives import broadcast_object, failing_together
from lmscale.runs.stop import StoppedError
from lmscale.runs.trackers import Trackers, open_trackers
from lmscale.stream.dataset import Dataset
from lmscale.train.assemble import Run
from lmscale.train.early_stop import tell_unmeasured
from lmscale.train.labelled_pages import show_labelled
from lmscale.train.replaced_sets import take_up_sets
from lmscale.train.task_scoring import TaskScorer, open_task_scorer
from lmscale.train.votes import StopPoll

logger = logging.getLogger(__name__)

SAMPLED = "evaluation"  # of at most max_windows windows: one curve, alike from step to step
WHOLE = "final"  # of all windows, after the last step
TOLD_SECONDS = 30.0  # from line to line of an evaluation that takes long


@dataclass(kw_only=True)
class Evaluator:
    """Scores the held-out sets of a run. All ranks call it together.

    Raises ``StoppedError`` on all of them when one is asked to stop: there is no score then.
    """

    run: Run
    datasets: dict[str, Dataset]
    plan: EvaluationPlan | None  # None where there are no sets
    trackers: Trackers | None  # rank 0's
    poll: StopPoll
    stop_figures: dict[int, float]  # step → figure of evaluation.stop, so far
    task_scorer: TaskScorer | None = None  # None where there are no tasks
    scored_step: int | None = None  # the last one
    early_stop: str | None = None  # why the run ends with that step; alike on all ranks

    def __call__(self, report: StepReport) -> None:
        is_last = report.step == self.run.config.train.steps
        if report.stop_reason is not None and not is_last:
            return
        for names in find_due(self.run.config.evaluation, report.step, is_last=is_last):
            self.score(report.step, *names)
        if is_last or self.early_stop is None:
            self.score_tasks(report.step, is_last=is_last)

    def score_owed(self) -> None:
        """Before the first step: what was due after the step before it, if a kill or a request to
        stop has come between.
        """
        config, step = self.run.config.evaluation, self.run.start.step
        is_due = self.plan is not None and step > 0 and is_scheduled(config, step)
        scorer = self.task_scorer
        is_task_due = scorer is not None and step > 0 and scorer.is_due(step, is_last=False)
        if not (is_due or is_task_due):
            return
        scored = find_scored(self.run)
        is_needed = bool(config.stop.metric) and step not in self.stop_figures
        if is_due and (SAMPLED not in scored or is_needed):
            self.score(step, SAMPLED)
        if is_task_due and PREFIX not in scored and self.early_stop is None:
            self.score_tasks(step, is_last=False)

    def score_early_end(self, step: int) -> None:
        """After a step that was due, and with whose figures the run ends."""
        if self.run.config.evaluation.at_end:
            self.score(step, WHOLE)
        self.score_tasks(step, is_last=True)

    def score_tasks(self, step: int, *, is_last: bool) -> None:
        """If they are due."""
        scorer = self.task_scorer
        if scorer is not None and scorer.is_due(step, is_last=is_last):
            is_average = self.run.config.scores_average
            scorer.score(step, averaged_weights(self.run.engine) if is_average else None)
            self.scored_step = step

    def score(self, step: int, *names: str) -> None:
        """Score every set that is due once, for ``SAMPLED``, ``WHOLE`` or both."""
        run, config = self.run, self.run.config.evaluation
        due = {name: self.datasets if name == WHOLE else config.of_loop for name in names}
        wanted = {*chain(*due.values())}
        datasets = {each: data for each, data in self.datasets.items() if each in wanted}
        if self.plan is None or not datasets:
            return
        plan = replace(self.plan, max_windows=None if WHOLE in names else config.max_windows)
        is_average = run.config.scores_average
        windows = {each: len(plan.window_numbers(data)) for each, data in datasets.items()}
        if WHOLE in names:
            logger.info("%s", describe_windows(windows, step))
        pace = ScoringPace(sum(windows.values()))
        with averaged_weights(run.engine) if is_average else nullcontext():
            scores = {
                set_name: evaluate_set(
                    run.engine.forward_module,
                    dataset,
                    plan,
                    data=run.mesh.data,
                    device=run.device,
                    advance=pace.advance,
                    between_batches=self.poll,
                )
                for set_name, dataset in datasets.items()
            }
        self.scored_step = step
        figures = {
            f"{name}/{set_name}/{figure}": value
            for name in names
            for set_name in due[name]
            for figure, value in scores[set_name].figures.items()
        }
        if self.trackers is not None:
            marks = {f"{name}/{OF_AVERAGE}": 1.0 for name in names if is_average}
            if SAMPLED in names and not is_scheduled(config, step):
                marks[f"{SAMPLED}/{AT_END}"] = 1.0
            # Of other windows than those before, the last point would be no point of the curve.
            is_point = SAMPLED in names or not config.every_steps
            losses = {each: figures.get(f"{names[0]}/{each}/loss") for each in due[names[0]]}
            self.trackers.log(step, figures | marks, losses=losses if is_point else {})
            for name in names:
                show_labelled(self.trackers, name, step, {each: scores[each] for each in due[name]})
        tell_unmeasured(run.config, figures, step)
        metric = config.stop.metric
        if metric in figures and is_scheduled(config, step):
            self.stop_figures[step] = figures[metric]
            self.early_stop = run.find_early_stop(self.stop_figures, step=step)
        which = " and ".join(names) + ", average of the weights" * is_average
        logger.info("held out at step %d (%s)\n%s", step, which, render_scores(scores))


def is_scheduled(config: EvaluationConfig, step: int) -> bool:
    """Whether the loop's series has a point at a step, wherever the run ends."""
    return bool(config.every_steps) and step % config.every_steps == 0


def find_due(config: EvaluationConfig, step: int, *, is_last: bool) -> list[tuple[str, ...]]:
    """The evaluations of the sets that are due after a step, each by the names of its figures.

    The loop's series has a point at the run's end, where a reader looks for one, beside the figure
    of the whole sets; both are one evaluation where they are of the same windows.
    """
    ends = is_last and config.at_end
    has_point = is_scheduled(config, step) or (ends and bool(config.every_steps))
    if has_point and ends and config.max_windows is None:
        return [(SAMPLED, WHOLE)]
    return [(name,) for name, is_due in ((SAMPLED, has_point), (WHOLE, ends)) if is_due]


def describe_windows(windows: Mapping[str, int], step: int) -> str:
    """What the evaluation of the whole sets has before it."""
    sets = ", ".join(f"{name} of {count_of(count, 'window')}" for name, count in windows.items())
    return f"evaluating the whole held-out sets after step {step}: {sets}"


@dataclass
class ScoringPace:
    """Says how far an evaluation has come, for as long as it takes."""

    total: int  # windows
    clock: Callable[[], float] = time.monotonic
    done: float = 0
    told_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.told_at = self.clock()

    def advance(self, windows: float) -> None:
        self.done += windows
        now = self.clock()
        if self.done < self.total and now - self.told_at >= TOLD_SECONDS:
            self.told_at = now
            logger.info("evaluated %s of %s windows", f"{self.done:,.0f}", f"{self.total:,}")


def open_run_trackers(run: Run, tokens: Callable[[], int]) -> AbstractContextManager[Trackers]:
    """Rank 0's, from the run's start on; ``tokens`` were trained on when it is asked."""
    return open_trackers(
        run.folder,
        resumed_step=run.start.step,
        every=run.config.train.log_every_steps,
        tokens=tokens,
        held_out=tuple(run.config.evaluation.sets),
    )


@contextmanager
def averaged_weights(engine: Engine) -> Iterator[None]:
    """The model has the average of its weights for the time of the block. All ranks together.

    The weights come back bit for bit where the block ends well, and where all ranks have agreed to
    stop: after any other error nothing of this engine is saved, and a rank may be gone.
    """
    engine.release_weights()
    averages = averages_of(engine)
    exchange(averages)
    refresh_parameters(engine)
    stopped = None
    try:
        yield
    except StoppedError as error:
        stopped = error
    exchange(averages)
    refresh_parameters(engine)
    if stopped is not None:
        raise stopped


@contextmanager
def open_evaluator(run: Run, trackers: Trackers | None, poll: StopPoll) -> Iterator[Evaluator]:
    """Open and check the held-out sets, and make their preparation, once: what is not there is an
    error before the first step, on every rank.
    """
    plan = None
    with ExitStack() as stack:
        with failing_together():
            datasets = open_evaluation_sets(
                run.config, run.tokenizer.fingerprint, check_files=run.ranks.is_first
            )
            for dataset in datasets.values():
                stack.callback(dataset.close)
            if run.ranks.is_first:
                take_up_sets(run, datasets)
            if datasets:
                plan = plan_evaluation(run.config, run.tokenizer, max_windows=None)
        if run.ranks.is_first:
            warn_of_other_writing(datasets, run.config.folder, bos_id=run.stream.bos_id)
        task_scorer = stack.enter_context(open_task_scorer(run, trackers, poll))
        yield Evaluator(
            run=run,
            datasets=datasets,
            plan=plan,
            trackers=trackers,
            poll=poll,
            stop_figures=dict(run.stop_figures),
            task_scorer=task_scorer,
        )


def find_scored(run: Run) -> set[str]:
    """What metrics.jsonl has of the step that the run goes on from: first parts of the figures'
    names, such as ``SAMPLED``. Rank 0 reads them, for all ranks.
    """
    rows: list[Row] = []
    if run.ranks.is_first:
        rows = sift_rows(run.folder / METRICS_FILE, FIGURES).rows
    names = {
        name.partition("/")[0] for row in rows if row["step"] == run.start.step for name in row
    }
    return set(broadcast_object(sorted(names)))


def complete_evaluation(run: Run, poll: StopPoll) -> None:
    """Score a run that was killed between its last checkpoint and its last evaluation."""
    config = run.config.evaluation
    step, is_first = run.start.step, run.ranks.is_first  # not where it should have ended
    every_steps = config.tasks_every_steps
    are_tasks_due = config.at_end or (bool(every_steps) and step % every_steps == 0)
    due = find_due(config, step, is_last=True) if config.sets else []
    due += [(PREFIX,)] if config.tasks and are_tasks_due else []
    scored = find_scored(run) if due else set()
    left = [tuple(name for name in names if name not in scored) for names in due]
    if not any(left):
        return
    with ExitStack() as stack:
        trackers = None
        with failing_together():
            if is_first:
                run.lease.check()
                trackers = stack.enter_context(open_run_trackers(run, lambda: run.start.tokens))
        evaluator = stack.enter_context(open_evaluator(run, trackers, poll))
        for names in filter(None, left):
            if names == (PREFIX,):
                evaluator.score_tasks(step, is_last=True)
            else:
                evaluator.score(step, *names)
