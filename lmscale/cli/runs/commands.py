"""``lmscale runs``: what runs there are, how one goes, what it said, whether it is sound."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.options import JsonOption, RunArgument
from lmscale.cli.runs.cancel import cancel
from lmscale.cli.runs.logs import logs
from lmscale.errors import EXIT_USER

if TYPE_CHECKING:
    from lmscale.stream.audit import AuditReport

app = typer.Typer(help="See, follow, cancel and audit runs.", no_args_is_help=True)
MAX_SHOWN = 10


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Holds run folders.")] = Path(
        "runs"
    ),
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="NAME", help="The results of a sweep, by their loss."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs of a folder: state, step, tokens, loss, speed, goodput, restarts.

    The state is Slurm's word where a run has jobs and Slurm answers, else what its folder shows. A
    folder that cannot be read says why in its row.
    """
    from lmscale.cli.runs.look import look_at
    from lmscale.cli.runs.view import NUMBERS, print_note, print_table, render_row, to_json
    from lmscale.runs.run_folder import find_runs
    from lmscale.runs.sweep_folder import find_sweeps

    if sweep is not None:
        _list_sweep(folder, sweep, as_json=as_json)
        return
    looks = look_at(find_runs(folder))
    print_note(looks.note)
    if as_json:
        typer.echo(json.dumps([to_json(*item) for item in looks.runs.items()], indent=1))
        return
    sweeps = find_sweeps(folder)
    if not looks.runs and not sweeps:
        typer.echo(f"{folder} holds no runs.")
        return
    if looks.runs:
        print_table(
            ("run", "state", *NUMBERS),
            (render_row(path, look) for path, look in looks.runs.items()),
            num_texts=2,
        )
    for item in sweeps:
        count = f"{len(item.runs)} runs over {', '.join(item.keys)}"
        typer.echo(f"{item.name}: a sweep of {count}; `lmscale runs list --sweep {item.name}`")


def _list_sweep(folder: Path, name: str, *, as_json: bool) -> None:
    from lmscale.cli.runs.look import look_at
    from lmscale.cli.runs.view import loss_of, print_note, print_sweep, to_json
    from lmscale.runs.sweep_folder import find_sweep

    sweep = find_sweep(folder, name)
    looks = look_at([member.folder for member in sweep.runs])
    print_note(looks.note)
    members = sorted(sweep.runs, key=lambda member: loss_of(looks.runs[member.folder]))
    if as_json:
        rows = [
            {**to_json(m.folder, looks.runs[m.folder]), "index": m.index, "values": m.values}
            for m in members
        ]
        content = {"sweep": name, "keys": list(sweep.keys), "job": sweep.job, "runs": rows}
        typer.echo(json.dumps(content, indent=1))
        return
    print_sweep(sweep.keys, [(member, looks.runs[member.folder]) for member in members])


@app.command()
def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show how a run goes: state, figures, estimated end, where its time went, and what became of
    every start.
    """
    from lmscale.cli.runs.look import read_page
    from lmscale.cli.runs.view import render_page, to_json

    page = read_page(run)
    if as_json:
        typer.echo(json.dumps({**to_json(run, page.look), **page.to_json()}, indent=1))
    else:
        typer.echo(render_page(page))


app.command()(logs)


@app.command()
def audit(run: RunArgument, as_json: JsonOption = False) -> None:
    """Recompute from the shards what every step should have read, and compare with the ledger.

    The ledger must reach as far as the run's newest checkpoint and its last start. The exit code is
    0 if over all restarts no sample was lost, repeated or altered; else it is 2, and the first
    differences are named.
    """
    from lmscale.files.progress import progress
    from lmscale.objective.objective import build_preparation
    from lmscale.runs.run_folder import load_run_config
    from lmscale.runs.sweep_folder import refuse_sweep
    from lmscale.stream.audit import audit_run
    from lmscale.stream.ledger import read_ledger, sum_rows

    refuse_sweep(run)
    config = load_run_config(run)
    samples, _ = sum_rows(read_ledger(run))
    with progress("auditing", samples, "samples") as advance:
        report = audit_run(config, run, build_preparation, advance)
    if as_json:
        typer.echo(json.dumps({"is_clean": report.is_clean, **asdict(report)}, indent=1))
    else:
        typer.echo(render_audit(run, report))
    if not report.is_clean:
        raise typer.Exit(EXIT_USER)


def render_audit(run: Path, report: AuditReport) -> str:
    """The verdict, then the first differences of each kind."""
    counted = f"{report.steps:,} steps, {report.samples:,} samples, {report.tokens:,} tokens"
    if report.jumped:
        counted += f"; {report.jumped:,} samples were jumped on purpose (rewinds.jsonl)"
    if report.is_clean:
        return f"{run}: clean. {counted}: every sample once, in order, as it is in the shards."
    lines = [f"{run}: NOT clean. {counted}."]
    for kind in ("lost", "repeated", "altered"):
        problems = getattr(report, kind)
        lines += [f"  {kind}: {problem}" for problem in problems[:MAX_SHOWN]]
        if len(problems) > MAX_SHOWN:
            lines.append(f"  {kind}: {len(problems) - MAX_SHOWN:,} more; --json prints them all")
    return "\n".join(lines)


app.command()(cancel)
