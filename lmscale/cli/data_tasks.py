"""What the commands of corpus and shards share: building alone or by the tasks of an array."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lmscale.cli.options import echo_json
from lmscale.config import RunConfig
from lmscale.files.printing import say
from lmscale.ranks.ranks import render_numbers

if TYPE_CHECKING:
    from lmscale.tasks.building import BuildSummary
    from lmscale.tasks.finishing import Progress
    from lmscale.tasks.target import ArrayTask

Stage = Literal["corpus", "shards"]
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


def missing_of(builds: Iterable[Progress]) -> tuple[int, ...]:
    return tuple(sorted({task for progress in builds for task in progress.missing}))


def progress_of(config: RunConfig, stage: Stage, num_tasks: int) -> tuple[Progress, ...]:
    if stage == "corpus":
        from lmscale.corpus.build import corpus_progress

        return corpus_progress(config.corpus, num_tasks)
    from lmscale.shards.build import shards_progress

    return shards_progress(config, num_tasks)


def echo_progress(config: RunConfig, stage: Stage, num_tasks: int, *, as_json: bool) -> None:
    """Print each build's state and the missing tasks, for ``status``."""
    builds = progress_of(config, stage, num_tasks)
    missing = missing_of(builds)
    if as_json:
        rows = {str(progress.target.final): _as_data(progress) for progress in builds}
        echo_json({"tasks": num_tasks, "missing": missing, "builds": rows})
        return
    for progress in builds:
        say(f"{progress.target.final}: {_describe_progress(progress)}")
    say(f"missing: --array={render_numbers(missing)}" if missing else "nothing is missing")


def echo_summary(
    summary: BuildSummary[Any],
    task: ArrayTask | None,
    unit: str,
    describe: Callable[[Any], str],
    as_data: Callable[[Any], dict[str, Any]],
    *,
    as_json: bool,
) -> None:
    """Print what a build did, and the builds that wait for other tasks.

    ``unit`` is parts or slices; ``describe`` and ``as_data`` show a manifest.
    """
    if as_json:
        data = {name: as_data(built.manifest) for name, built in summary.built.items()}
        if task:
            waiting = summary.unfinished.items()
            data = {
                "task": task.number,
                "tasks": task.count,
                "units_done": summary.units_done,
                "units_found": summary.units_found,
                "unfinished": {name: _as_data(each.progress) for name, each in waiting},
                "finished": data,
            }
        echo_json(data)
        return
    if task:
        earlier = f", found {summary.units_found} done" if summary.units_found else ""
        say(f"{task}: {summary.units_done} {unit} done now{earlier}")
        for name, each in summary.unfinished.items():
            holder = f"is being finished by {each.holder}" if each.holder else ""
            say(f"{name}: {holder or _describe_progress(each.progress)}")
    for built in summary.built.values():
        state = "built" if built.is_new else "already built"
        say(f"{built.folder}: {state}\n{describe(built.manifest)}")


def _as_data(progress: Progress) -> dict[str, Any]:
    has_begun = progress.ended or progress.foreign or progress.other_counts
    if progress.is_built:
        state = "built"
    elif progress.expected <= progress.ended:
        state = "to be finished"
    else:
        state = "unfinished" if has_begun else "no task has ended"
    return {
        "state": state,
        "units": len(progress.target.units),
        "done": sorted(progress.ended),
        "missing": list(progress.missing),
        "foreign": list(progress.foreign),
        "other_counts": list(progress.other_counts),
    }


def _describe_progress(progress: Progress) -> str:
    """The missing tasks, and the markers that do not count, in a line."""
    if progress.is_built:
        return "built"
    num_ended = len(progress.expected & progress.ended)
    sentences = [f"{num_ended} of {len(progress.expected)} tasks have ended"]
    if progress.expected <= progress.ended:
        sentences.append("what is missing is to finish it, which any task does")
    else:
        many = "s" if len(progress.missing) > 1 else ""  # counted from 0, as Slurm does
        sentences.append(f"missing: task{many} {render_numbers(progress.missing)}")
    if progress.foreign:
        names = ", ".join(progress.foreign)
        sentences.append(f"do not count, being of other settings or inputs: {names}")
    if progress.other_counts:
        counts = ", ".join(map(str, progress.other_counts))
        sentences.append(f"what tasks of an array of {counts} have finished is used")
    return "; ".join(sentences)
