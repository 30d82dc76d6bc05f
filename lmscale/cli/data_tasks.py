"""Building data by the tasks of an array: what the commands of corpus and shards share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from lmscale.config import RunConfig
    from lmscale.corpus import CorpusSummary
    from lmscale.shards import ShardsSummary
    from lmscale.tasks.array_tasks import ArrayTask, Conclusion, Progress

TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="I/N",
        help="Do only what task I of N (0 to N - 1) has to do; the last one finishes the build.",
    ),
]
TasksOption = Annotated[
    int, typer.Option("--tasks", metavar="N", min=1, help="Number of tasks of the array.")
]


def missing_tasks(
    config: RunConfig, stage: Literal["corpus", "shards"], num_tasks: int
) -> tuple[int, ...]:
    """Tasks, of ``num_tasks``, that a build still needs: what a resubmission has to submit.

    Empty when all is built. Raises ``LmscaleError`` for what each of them would refuse.
    """
    return _missing(progress_of(config, stage, num_tasks))


def _missing(builds: Iterable[Progress]) -> tuple[int, ...]:
    return tuple(sorted({task for progress in builds for task in progress.missing}))


def progress_of(
    config: RunConfig, stage: Literal["corpus", "shards"], num_tasks: int
) -> tuple[Progress, ...]:
    if stage == "corpus":
        from lmscale.corpus import corpus_progress

        return corpus_progress(config.corpus, num_tasks)
    from lmscale.shards import shards_progress

    return shards_progress(config, num_tasks)


def echo_progress(
    config: RunConfig, stage: Literal["corpus", "shards"], num_tasks: int, *, as_json: bool
) -> None:
    """What is done and which tasks are missing, for ``status``."""
    from launcher.directives import render_numbers

    builds = progress_of(config, stage, num_tasks)
    missing = _missing(builds)
    if as_json:
        rows = {str(progress.build.final): _as_data(progress) for progress in builds}
        typer.echo(json.dumps({"tasks": num_tasks, "missing": missing, "builds": rows}, indent=1))
        return
    for progress in builds:
        typer.echo(f"{progress.build.final}: {describe_progress(progress)}")
    if missing:
        typer.echo(f"missing: --array={render_numbers(missing)}")
    else:
        typer.echo("nothing is missing")


def _as_data(progress: Progress) -> dict[str, Any]:
    return {
        "state": _state(progress),
        "units": len(progress.build.sizes),
        "done": sorted(progress.done),
        "missing": list(progress.missing),
        "foreign": list(progress.foreign),
        "other_counts": list(progress.other_counts),
    }


def _state(progress: Progress) -> str:
    if progress.is_built:
        return "built"
    if progress.expected <= progress.done:
        return "to be finished"
    has_begun = progress.done or progress.foreign or progress.other_counts
    return "unfinished" if has_begun else "no task has ended"


def describe_progress(progress: Progress) -> str:
    """In a line: which tasks are missing, and which markers do not count."""
    from launcher.directives import render_numbers

    if progress.is_built:
        return "built"
    told = [
        f"{len(progress.expected & progress.done)} of {len(progress.expected)} tasks have ended"
    ]
    if progress.expected <= progress.done:
        told.append("what is missing is to finish it, which any task does")
    else:
        told.append(f"missing: {render_numbers(progress.missing)}")
    if progress.foreign:
        told.append(
            f"do not count, being of other settings or inputs: {', '.join(progress.foreign)}"
        )
    if progress.other_counts:
        counts = ", ".join(map(str, progress.other_counts))
        told.append(f"what tasks of an array of {counts} have finished is used")
    return "; ".join(told)


def echo_task(task: ArrayTask, unit: str, summary: CorpusSummary | ShardsSummary) -> None:
    """What a task did, and what is left to others. ``unit``: parts or slices."""
    found = f", found {summary.units_found} done" if summary.units_found else ""
    typer.echo(f"{task}: {summary.units_done} {unit} done now{found}")
    for name, conclusion in summary.unfinished.items():
        typer.echo(f"{name}: {_describe(conclusion)}")


def _describe(conclusion: Conclusion) -> str:
    if conclusion.state == "elsewhere":
        return f"is being finished by {conclusion.holder}"
    return describe_progress(conclusion.progress)


def task_as_data(task: ArrayTask, summary: CorpusSummary | ShardsSummary) -> dict[str, Any]:
    return {
        "task": task.number,
        "tasks": task.count,
        "units_done": summary.units_done,
        "units_found": summary.units_found,
        "unfinished": {
            name: {"state": conclusion.state, **_as_data(conclusion.progress)}
            for name, conclusion in summary.unfinished.items()
        },
    }
