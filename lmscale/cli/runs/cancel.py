"""``lmscale runs cancel``: end a run for good, saved or at once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.options import JsonOption
from lmscale.errors import ClusterError, ConfigError, LmscaleError
from lmscale.files.atomic import writing
from lmscale.files.run_files import (
    DATA_SLURM_FOLDER,
    SLURM_FOLDER,
    STOP_FILE,
    SWEEP_FILE,
    read_cancelled,
)
from lmscale.runs.sweep_folder import find_sweep, read_sweep

if TYPE_CHECKING:
    from launcher.cancel import JobCancel
    from launcher.slurm import QueuedJob
    from lmscale.files.jsonl import Row


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """What was done about one run, as --json prints it."""

    folder: str
    jobs: tuple[JobCancel, ...] = ()
    stop_file: bool = False
    text: tuple[str, ...]
    """What was done, and what happens next."""


def cancel(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run's folder, or a sweep's; with --sweep the one that holds the sweep (runs).",
            show_default=False,
        ),
    ] = None,
    at_once: Annotated[bool, typer.Option("--now", help="Do not save.")] = False,
    sweep: Annotated[
        str | None, typer.Option("--sweep", metavar="NAME", help="Cancel all runs of a sweep.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """End a run for good: it saves a checkpoint, ends, and is not requeued.

    Its jobs that wait in the queue are cancelled at once; with --now those that run are too, and
    nothing is saved. A run without Slurm is asked by the file `stop` in its folder. To go on later,
    launch it again.
    """
    runs = _choose(run, sweep)
    is_sweep = sweep is not None or len(runs) != 1 or runs[0] != run
    cancelled, problems = cancel_runs(runs, at_once=at_once)
    if as_json:
        rows = [asdict(result) for result in cancelled]
        if is_sweep or rows:
            typer.echo(json.dumps(rows if is_sweep else rows[0], indent=1))
    else:
        for result in cancelled:
            for line in result.text:
                typer.echo(f"{result.folder}: {line}")
    if problems:
        raise ClusterError(problems)


def _choose(run: Path | None, sweep: str | None) -> list[Path]:
    """The run, or all runs of a sweep: by its name, or of which ``run`` is the folder."""
    from lmscale.runs.run_folder import load_run_config

    if sweep is not None:
        return [member.folder for member in find_sweep(run or Path("runs"), sweep).runs]
    if run is None:
        raise ConfigError("Name the run's folder, or a sweep with --sweep NAME.")
    if (run / SWEEP_FILE).is_file():
        return [member.folder for member in read_sweep(run).runs]
    if not (run / DATA_SLURM_FOLDER).is_dir():  # of a corpus or of shards
        load_run_config(run)  # refuses what is no run
    return [run]


def cancel_runs(runs: Sequence[Path], *, at_once: bool) -> tuple[list[Cancelled], list[str]]:
    """Cancel all of them, with one question to Slurm; one that cannot be holds no other up."""
    from launcher.slurm import squeue
    from launcher.status import jobs_of
    from lmscale.runs.run_folder import read_submissions

    submissions = {run: read_submissions(run) for run in runs}
    jobs = [job for rows in submissions.values() for row in rows for job in jobs_of(row)]
    queue = squeue(jobs) if jobs and shutil.which("squeue") is not None else None
    cancelled, problems = [], []
    for run in runs:
        try:
            if queue is not None:
                cancelled.append(_cancel_jobs(run, submissions[run], queue, at_once=at_once))
            else:
                cancelled.append(_cancel_by_files(run, submissions[run], at_once=at_once))
        except LmscaleError as error:
            problems += error.problems
    return cancelled, problems


def _cancel_jobs(
    run: Path, submissions: Sequence[Row], queue: Sequence[QueuedJob], *, at_once: bool
) -> Cancelled:
    from launcher.cancel import cancel_jobs, plan_cancel

    state_folder = _state_folder(run)
    plans = plan_cancel(submissions, queue, cancels=read_cancelled(state_folder), at_once=at_once)
    if not plans:
        return _cancel_by_files(run, (), at_once=at_once)
    cancel_jobs(state_folder, plans)
    text = [plan.line for plan in plans]
    if any(plan.can_save for plan in plans):
        text.append(
            f"it saves at the end of its step and ends. `lmscale runs status {run}` shows how it "
            f"goes; `lmscale runs cancel {run} --now` does not wait for that."
        )
    return Cancelled(folder=str(run), jobs=plans, text=tuple(text))


def _state_folder(run: Path) -> Path:
    data = run / DATA_SLURM_FOLDER
    return data if data.is_dir() else run / SLURM_FOLDER


def _cancel_by_files(run: Path, submissions: Sequence[Row], *, at_once: bool) -> Cancelled:
    """A run without Slurm, or one whose Slurm cannot be asked from here: by its stop file.

    ``submissions``: those whose jobs may still be there.
    """
    from launcher.cancel import note_cancelled
    from launcher.status import jobs_of, judge_run
    from lmscale.runs.run_folder import read_status

    if (run / DATA_SLURM_FOLDER).is_dir():
        if not submissions:
            return Cancelled(folder=str(run), text=("nothing runs or waits.",))
        raise _cannot_ask(run, jobs_of(submissions[-1]))
    state = judge_run(read_status(run), None, time.time())
    jobs = () if state.job is None or not submissions else jobs_of(submissions[-1])
    if not state.is_active or (state.job is not None and not jobs):
        return Cancelled(folder=str(run), text=(f"nothing runs or waits: {state.line}.",))
    if state.name in ("queued", "held") or (jobs and at_once):
        raise _cannot_ask(run, jobs)
    if at_once:
        raise ConfigError(
            f"{run}: --now ends Slurm jobs only. Without it the run saves and ends; Ctrl-C twice "
            "in the terminal that started it ends it without saving."
        )
    if jobs:
        note_cancelled(_state_folder(run), jobs)
    had_file = (run / STOP_FILE).exists()
    if not had_file:
        with writing("the stop file", run, ClusterError):
            (run / STOP_FILE).touch()
    again = "it was asked before" if had_file else "asked by the file `stop`"
    text = [f"{state.line}; {again} to save at the end of its step and to end."]
    if jobs:
        text.append(
            f"Slurm cannot be asked from here: job {state.job} is noted as cancelled and will not "
            f"be requeued. If it shows up again, run `scancel {' '.join(jobs)}` on the cluster."
        )
    elif state.name == "silent":
        text.append("if it was killed there is nothing to stop, and its next start goes on.")
    return Cancelled(folder=str(run), stop_file=True, text=tuple(text))


def _cannot_ask(run: Path, jobs: Sequence[str]) -> ClusterError:
    return ClusterError(
        f"{run}: its jobs ({', '.join(jobs)}) can only be cancelled where Slurm's commands are, "
        "and this machine has no squeue. Run this on a login node of the cluster."
    )
