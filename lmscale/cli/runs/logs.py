"""``lmscale runs logs``: all ranks' logs as one, one rank's, or what the batch script wrote."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from lmscale.cli.options import RunArgument
from lmscale.errors import ConfigError, DataError, LmscaleError
from lmscale.files.run_files import DATA_SLURM_FOLDER
from lmscale.runs.log_merge import LogFiles, LogLine
from lmscale.runs.sweep_folder import job_outputs, refuse_sweep

POLL_SECONDS = 0.5
FILES_PER_SECOND = 500  # looked at while following: thousands of ranks share a file system
EXIT_INTERRUPTED = 130


def logs(
    run: RunArgument,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on as it grows, over restarts.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=0, help="Only this rank's.", show_default="all ranks"),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="What ranks wrote outside their log, such as a crash; not rank 0."
        ),
    ] = False,
    job: Annotated[
        bool, typer.Option("--job", help="The Slurm batch scripts' output, with rank 0's.")
    ] = False,
    lines: Annotated[
        int | None,
        typer.Option("-n", "--lines", min=1, help="Only the last N.", show_default="all"),
    ] = None,
) -> None:
    """Print what a run logged: all ranks in the order of time, each line behind its rank.

    A line without a time stays with the one before it. Ctrl-C ends --follow.
    """
    if job and (raw or rank is not None):
        raise ConfigError("--job prints what no rank has logged: leave --rank and --raw out.")
    refuse_sweep(run)
    files = _choose(run, rank, raw=raw, job=job)
    _check(run, files, follow=follow)
    found = _read(run, files, follow=follow, last=lines)
    try:
        sys.stdout.writelines(_render(found, with_rank=not job and rank is None, with_file=job))
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _choose(run: Path, rank: int | None, *, raw: bool, job: bool) -> LogFiles:
    if job:
        folder, pattern = job_outputs(run)
        data = run / DATA_SLURM_FOLDER  # of a corpus or of shards
        return LogFiles(data if data.is_dir() else folder, pattern, by_time=False)
    ending = "out" if raw else "log"
    number = "*" if rank is None else f"{rank:05d}"
    return LogFiles(run / "logs", f"rank-{number}.{ending}", by_time=not raw)


def _check(run: Path, files: LogFiles, *, follow: bool) -> None:
    """Where there is nothing to show, say what there is; who follows may wait for it."""
    if files.find():
        return
    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such folder. `lmscale runs list` shows the runs.")
    if follow:
        typer.echo(f"{files.place}: nothing there yet; waiting", err=True)
        return
    names = sorted(p.name for pattern in ("*.log", "*.out") for p in (run / "logs").glob(pattern))
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    there = f"There: {shown}." if names else "It holds no logs yet; -f waits for them."
    raise DataError(f"{files.place}: there is no such log. {there}")


def _read(run: Path, files: LogFiles, *, follow: bool, last: int | None) -> Iterator[LogLine]:
    """The last lines, or all, and with ``follow`` those to come."""
    if last is not None:
        files.skip_to_last(last)
    first = files.read(with_torn=not follow)
    yield from first if last is None else deque(first, last)
    if follow:
        sys.stdout.flush()
        _say_if_ended(run)
    while follow:
        time.sleep(max(POLL_SECONDS, len(files.find()) / FILES_PER_SECOND))
        yield from files.read(with_torn=False)
        sys.stdout.flush()


def _say_if_ended(run: Path) -> None:
    """Who follows a run that has ended would wait without knowing what for."""
    from lmscale.cli.runs.look import look_at

    look = look_at([run]).runs[run]
    if isinstance(look, LmscaleError) or look.state.is_active or look.state.name == "not started":
        return  # one that is no run, such as shards being built, is followed all the same
    text = f"the run has ended: {look.state.line}; waiting for a next start, Ctrl-C ends this"
    typer.echo(text, err=True)


def _render(lines: Iterable[LogLine], *, with_rank: bool, with_file: bool) -> Iterator[str]:
    """``with_file``: a chain has a file for each of its jobs; say whenever another one begins."""
    last: Path | None = None
    for line in lines:
        if with_file and last not in (None, line.path):
            yield f"==> {line.path.name} <==\n"
        last = line.path
        yield f"[{line.number[0]}] {line.text}\n" if with_rank else f"{line.text}\n"
