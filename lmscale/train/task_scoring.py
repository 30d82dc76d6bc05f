"""Tasks of lm-evaluation-harness while a run trains: rank 0 reads them, all ranks answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmscale.errors import LmscaleError
from lmscale.evaluation.respondent import Respondent, build_respondent
from lmscale.evaluation.task_scores import (
    PREFIX,
    TaskScore,
    name_figures,
    render_task_scores,
)
from lmscale.files.run_rows import OF_AVERAGE
from lmscale.objective.scores import Scoring
from lmscale.ranks.collectives import failing_together
from lmscale.runs.stop import StoppedError
from lmscale.runs.trackers import Trackers
from lmscale.train.assemble import Run
from lmscale.train.votes import StopPoll
from lmscale.watch import heartbeat

if TYPE_CHECKING:
    from lmscale.evaluation.harness import Tasks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TaskScorer:
    """Scores the tasks of a run. All ranks call it together."""

    run: Run
    tasks: Tasks | None  # rank 0's
    trackers: Trackers | None  # rank 0's
    poll: StopPoll

    def is_due(self, step: int, *, is_last: bool) -> bool:
        config = self.run.config.evaluation
        every_steps = config.tasks_every_steps
        return bool(every_steps and step % every_steps == 0) or (is_last and config.at_end)

    def score(self, step: int, weights: AbstractContextManager[None] | None = None) -> None:
        """Record the figures of every task. ``weights``: a block in which the model has those that
        are to be scored. Raises ``StoppedError`` on all ranks: there is no figure then.

        A task that fails is told, and ends no training: nothing rests on its figures.
        """
        run, started = self.run, time.monotonic()
        scoring = run.engine.module
        assert isinstance(scoring, Scoring)
        with weights or nullcontext(), run.engine.evaluating():
            heartbeat.phase("evaluate")
            respondent = build_respondent(
                run.config,
                run.engine.forward_module,
                scoring.model,  # type: ignore[arg-type]
                run.tokenizer,
                bos_id=run.stream.bos_id,
                data=run.mesh.data,
                device=run.device,
                between_batches=self.poll,
            )
            if self.tasks is None:
                respondent.follow()
                return
            scores = self._lead(respondent, self.tasks)
        self._show(scores, step, respondent, time.monotonic() - started)

    def _lead(self, respondent: Respondent, tasks: Tasks) -> Mapping[str, TaskScore]:
        from lmscale.evaluation.harness import score_tasks

        scores: Mapping[str, TaskScore] = {}
        try:
            scores = score_tasks(tasks, respondent, tick=heartbeat.tick)
        except Exception as error:
            # Amid an order the other ranks wait for this one's part of it, and hear of nothing.
            if respondent.is_busy or isinstance(error, StoppedError):
                raise
            is_told = isinstance(error, LmscaleError)
            said = error if is_told else f"{type(error).__name__}: {error}"
            logger.warning("no figures of tasks this time: %s", said, exc_info=not is_told)
        respondent.end()
        return scores

    def _show(
        self, scores: Mapping[str, TaskScore], step: int, respondent: Respondent, seconds: float
    ) -> None:
        if not scores:
            return
        is_average = self.run.config.scores_average
        if self.trackers is not None:
            own = {f"{PREFIX}/seconds": seconds}
            of_average = {f"{PREFIX}/{OF_AVERAGE}": 1.0} if is_average else {}
            self.trackers.log(step, name_figures(scores) | own | of_average)
        which = ", average of the weights" if is_average else ""
        cut = f"; {n:,} requests were cut on the left" if (n := respondent.num_cut) else ""
        cut += f"; {n:,} texts had less room" if (n := respondent.num_short) else ""
        logger.info(
            "tasks at step %d%s, in %.1f s%s\n%s",
            *(step, which, seconds, cut, render_task_scores(scores)),
        )


@contextmanager
def open_task_scorer(
    run: Run, trackers: Trackers | None, poll: StopPoll
) -> Iterator[TaskScorer | None]:
    """Load and check the tasks, once, on rank 0: what is wrong is an error before the first step,
    on every rank. None where the run has no tasks.
    """
    config = run.config.evaluation
    if not config.tasks:
        yield None
        return
    tasks = None
    with failing_together():
        if run.ranks.is_first:
            from lmscale.evaluation.harness import open_tasks

            tasks = open_tasks(
                config.tasks,
                include_path=config.tasks_include_path or None,
                limit=config.tasks_limit,
            )
        heartbeat.tick()
    yield TaskScorer(run=run, tasks=tasks, trackers=trackers, poll=poll)
