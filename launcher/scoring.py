"""What a job of evaluation runs: the held-out sets, the tasks, or one after the other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmscale.config import RunConfig
from lmscale.config.training import EvaluationConfig, is_task_place

Command = tuple[str, ...]


def plan_scoring(config: RunConfig, main: Command, *, step: int | None) -> tuple[Command, ...]:
    """The commands, each behind the words of ``main``: of the sets unless the configuration has
    tasks alone, and of ``evaluation.tasks`` where it has some. ``step`` None: the newest checkpoint
    that there is when the job begins.
    """
    of_run = (*main, "evaluate", str(config.folder))
    of_run += () if step is None else ("--step", str(step))
    evaluation = config.evaluation
    sets = (of_run,) if scores_sets(evaluation) else ()
    return (*sets, (*of_run, *_task_options(evaluation))) if evaluation.tasks else sets


def scores_sets(evaluation: EvaluationConfig) -> bool:
    """Whether the held-out sets are scored: unless there are tasks alone."""
    return bool(evaluation.sets) or not evaluation.tasks


def _task_options(evaluation: EvaluationConfig) -> Command:
    options: list[str] = ["--tasks", ",".join(evaluation.tasks)]
    if evaluation.tasks_include_path:
        options += ["--include-path", evaluation.tasks_include_path]
    if evaluation.tasks_limit is not None:
        options += ["--limit", str(evaluation.tasks_limit)]
    return tuple(options)


def task_places(evaluation: EvaluationConfig) -> list[str]:
    """The folders and files that its tasks are in; lm-eval's own are in none."""
    places = [*evaluation.tasks, evaluation.tasks_include_path]
    return [place for place in places if place and is_task_place(place)]


def find_scoring_problems(
    config: RunConfig, *, step: int | None, steps: Sequence[int], after: str | None
) -> list[str]:
    """Why such a job would find nothing to score. ``steps``: of the run's checkpoints; a job that
    waits for another one, ``after``, may find more.
    """
    folder, evaluation = config.folder, config.evaluation
    problems = []
    if after is None and not steps:
        problems.append(f"{folder} holds no checkpoint yet: there is nothing to evaluate.")
    elif after is None and step is not None and step not in steps:
        listed = ", ".join(map(str, steps))
        problems.append(f"--step {step}: {folder} has no such checkpoint. There are: {listed}.")
    problems += [
        f"evaluation.tasks: {place} is not there. Make tasks of held-out text by `lmscale suite "
        "make CONFIG --out DIR`, or correct the place."
        for place in task_places(evaluation)
        if not Path(place).exists()
    ]
    return problems
