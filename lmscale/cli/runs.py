"""``lmscale runs``: what runs there are, how one goes, what it said, whether it is sound."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmscale.cli.options import JsonOption, RunArgument
from lmscale.errors import EXIT_USER, DataError, LmscaleError

if TYPE_CHECKING:
    from lmscale.runtime.run_folder import RunStatus
    from lmscale.stream.audit import AuditReport

app = typer.Typer(help="See, follow and audit runs.", no_args_is_help=True)
POLL_SECONDS = 0.5
MAX_SHOWN = 10


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Holds run folders.")] = Path(
        "runs"
    ),
    as_json: JsonOption = False,
) -> None:
    """List the runs of a folder: step, tokens, loss, speed, goodput, restarts.

    A folder that cannot be read says why in its row.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lmscale.runtime.run_folder import find_runs

    found = {path: _read_status(path) for path in find_runs(folder)}
    if as_json:
        rows = [
            _to_json(run)
            if not isinstance(run, LmscaleError)
            else {"run": path.name, "folder": str(path), "problems": list(run.problems)}
            for path, run in found.items()
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    if not found:
        typer.echo(f"{folder} holds no runs.")
        return
    table = Table("run", "state", *_NUMBERS, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for path, run in found.items():
        if isinstance(run, LmscaleError):
            cells = [path.name, _render_problems(run, path), *["-"] * len(_NUMBERS)]
        else:
            cells = [path.name, run.state, *_render_numbers(run).values()]
        table.add_row(*(Text(cell) for cell in cells))
    # A pipe has no width to fit; nothing may be cut or wrapped there.
    console = Console() if Console().is_terminal else Console(width=1000)
    console.print(table)


def _read_status(folder: Path) -> RunStatus | LmscaleError:
    """One run of another version, or a damaged one, must not hide the others."""
    from lmscale.runtime.run_folder import read_status

    try:
        return read_status(folder)
    except LmscaleError as error:
        return error


def _render_problems(error: LmscaleError, folder: Path) -> str:
    """The first problem, its files named from the run's folder on, and how many more there are."""
    first = error.problems[0].replace(f"{folder}/", "")
    others = len(error.problems) - 1
    return f"{first} (and {others} more)" if others else first


@app.command()
def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show how a run goes: its state, latest figures, attempts and checkpoints."""
    from lmscale.runtime.run_folder import read_status

    found = read_status(run)
    typer.echo(json.dumps(_to_json(found), indent=1) if as_json else render_status(found))


@app.command()
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows.")] = False,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Whose log.")] = 0,
) -> None:
    """Print a rank's log; a rank's raw output beside it is logs/rank-00001.out."""
    from lmscale.runtime.logs import log_path

    path = log_path(run, rank)
    if not path.is_file():
        known = sorted(path.parent.glob("rank-*.log"))
        names = f"There: {', '.join(p.name for p in known)}." if known else "It holds no logs yet."
        raise DataError(f"{path}: there is no such log. {names}")
    with open(path, encoding="utf-8", errors="replace") as file:
        while True:
            for line in file:
                typer.echo(line, nl=False)
            if not follow:
                return
            time.sleep(POLL_SECONDS)


@app.command()
def audit(run: RunArgument, as_json: JsonOption = False) -> None:
    """Recompute from the shards what every step should have read, and compare with the ledger.

    The ledger must reach as far as the run's newest checkpoint and its last start. The exit code is
    0 if over all restarts no sample was lost, repeated or altered; else it is 2, and the first
    differences are named.
    """
    from lmscale.runtime.progress import progress
    from lmscale.runtime.run_folder import load_run_config
    from lmscale.stream.audit import audit_run
    from lmscale.stream.ledger import read_ledger, sum_rows

    config = load_run_config(run)
    samples, _ = sum_rows(read_ledger(run))
    with progress("auditing", samples, "samples") as advance:
        report = audit_run(config, run, advance)
    if as_json:
        typer.echo(json.dumps({"is_clean": report.is_clean, **asdict(report)}, indent=1))
    else:
        typer.echo(render_audit(run, report))
    if not report.is_clean:
        raise typer.Exit(EXIT_USER)


def render_audit(run: Path, report: AuditReport) -> str:
    """The verdict, then the first differences of each kind."""
    counted = f"{report.steps:,} steps, {report.samples:,} samples, {report.tokens:,} tokens"
    if report.is_clean:
        return f"{run}: clean. {counted}: every sample once, in order, as it is in the shards."
    lines = [f"{run}: NOT clean. {counted}."]
    for kind in ("lost", "repeated", "altered"):
        problems = getattr(report, kind)
        lines += [f"  {kind}: {problem}" for problem in problems[:MAX_SHOWN]]
        if len(problems) > MAX_SHOWN:
            lines.append(f"  {kind}: {len(problems) - MAX_SHOWN:,} more; --json prints them all")
    return "\n".join(lines)


_NUMBERS = ("step", "tokens", "loss", "tokens/s", "goodput", "restarts")


def _render_numbers(status: RunStatus) -> dict[str, str]:
    """The cells of a run under the headings of ``_NUMBERS``; ``-`` where nothing is known yet."""
    figures = status.figures
    cells = (
        f"{status.step:,}/{status.config.train.steps:,}",
        _render_number(figures.get("train/tokens"), ",.0f"),
        _render_number(figures.get("train/loss"), ".4f"),
        _render_number(figures.get("speed/tokens_per_second"), ",.0f"),
        f"{status.goodput.fraction:.1%}" if status.attempts else "-",
        str(status.goodput.restarts),
    )
    return dict(zip(_NUMBERS, cells, strict=True))


def _render_number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def render_status(status: RunStatus) -> str:
    """A run's state as lines of text."""
    gone = status.goodput
    lines = [f"{'run':16} {status.folder}", f"{'state':16} {status.state}"]
    lines += [f"{name:16} {cell}" for name, cell in _render_numbers(status).items()]
    lines.append(
        f"{'time':16} {gone.wall_seconds:,.0f} s in all, {gone.productive_seconds:,.0f} s in steps "
        f"that count, {gone.redone_seconds:,.0f} s in steps done again"
    )
    for row in status.attempts:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["time"]))
        plural = "s" if row["world_size"] > 1 else ""
        name = f"attempt {row['attempt']}"
        lines.append(
            f"{name:16} {began} on {row['host']}, {row['world_size']} rank{plural}, "
            f"ZeRO {row['zero_stage']}, from step {row['first_step']:,}"
        )
    lines.append(f"{'checkpoints':16} {', '.join(status.checkpoints) or 'none yet'}")
    lines += [
        f"{name:32} {_render_number(value, '.6g')}"
        for name, value in status.figures.items()
        if "/" in name  # the rest are the row's own step and time
    ]
    return "\n".join(lines)


def _to_json(status: RunStatus) -> dict[str, Any]:
    return {
        "run": status.config.run.name,
        "folder": str(status.folder),
        "state": status.state,
        "step": status.step,
        "steps": status.config.train.steps,
        "figures": status.figures,
        "goodput": {**asdict(status.goodput), "fraction": status.goodput.fraction},
        "attempts": list(status.attempts),
        "checkpoints": list(status.checkpoints),
    }
