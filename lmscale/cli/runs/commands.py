"""``lmscale runs``: what runs there are, how one goes, what it said, whether it is sound."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.options import JsonOption, RunArgument, echo_json, print_warnings
from lmscale.cli.runs.branch import branch
from lmscale.cli.runs.logs import logs
from lmscale.errors import EXIT_USER, ClusterError, ConfigError, LmscaleError
from lmscale.files.locations import RUNS, find_run
from lmscale.files.printing import say
from lmscale.files.run_files import DATA_SLURM_FOLDER, SWEEP_FILE

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
    from lmscale.cli.runs.view import print_note, print_runs, to_json
    from lmscale.runs.run_folder import find_runs
    from lmscale.runs.sweep_folder import find_sweeps

    if sweep is not None:
        _list_sweep(folder, sweep, as_json=as_json)
        return
    looks = look_at(find_runs(folder))
    print_note(looks.note)
    if as_json:
        echo_json([to_json(*item) for item in looks.runs.items()])
        return
    damaged: list[str] = []
    sweeps = find_sweeps(folder, damaged)
    print_warnings(damaged)
    if not looks.runs and not sweeps:
        say(f"{folder} holds no runs.")
    if looks.runs:
        print_runs(looks.runs)
    for item in sweeps:
        count = f"{len(item.runs)} runs over {', '.join(item.keys)}"
        say(f"{item.name}: a sweep of {count}; `lmscale runs list --sweep {item.name}`")


def _list_sweep(folder: Path, name: str, *, as_json: bool) -> None:
    from lmscale.cli.runs.look import look_at
    from lmscale.cli.runs.view import loss_of, print_note, print_runs, to_json
    from lmscale.runs.sweep_folder import find_sweep

    sweep = find_sweep(folder, name)
    members = {member.folder: member for member in sweep.runs}
    looks = look_at(list(members))
    print_note(looks.note)
    runs = dict(sorted(looks.runs.items(), key=lambda item: loss_of(item[1])))
    if as_json:
        rows = [
            {**to_json(*item), "index": members[item[0]].index, "values": members[item[0]].values}
            for item in runs.items()
        ]
        content = {"sweep": name, "keys": list(sweep.keys), "job": sweep.job, "runs": rows}
        echo_json(content)
        return
    columns = ["state", "step", "loss", "tokens/s"]
    if any(not isinstance(look, LmscaleError) and look.status.heldout for look in runs.values()):
        columns.insert(3, "held out")
    print_runs(runs, columns, {place: m.values for place, m in members.items()}, sweep.keys)


@app.command()
def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show how a run goes: state, figures, estimated end, where its time went, and what became of
    every start. Tokens are tokens trained on, which the loss counts.
    """
    from lmscale.cli.runs.look import read_page
    from lmscale.cli.runs.view import render_page, to_json

    page = read_page(run)
    if as_json:
        echo_json({**to_json(run, page.look), **page.to_json()})
    else:
        say(render_page(page))


app.command()(logs)
app.command()(branch)


@app.command()
def audit(run: RunArgument, as_json: JsonOption = False) -> None:
    """Recompute from the shards what every step should have read, and compare with the ledger.

    The ledger must reach as far as the run's newest checkpoint and its last start. The exit code is
    0 if over all restarts no sample was lost, repeated or altered; else it is 2, and the first
    differences are named.
    """
    from lmscale.files.progress import progress
    from lmscale.objective.objective import build_preparation
    from lmscale.runs.given_weights import describe_import, describe_made
    from lmscale.runs.origins import BRANCH, read_origins
    from lmscale.runs.run_folder import load_run_config
    from lmscale.runs.sweep_folder import refuse_sweep
    from lmscale.stream.audit import audit_run
    from lmscale.stream.ledger import read_ledger, sum_rows

    refuse_sweep(run)
    config = load_run_config(run)
    if imported := describe_import(run):
        row = {"is_clean": True, "imported_from": imported}
        echo_json(row) if as_json else say(f"{run}: an import of {imported}; nothing to audit")
        return
    if made := describe_made(run):
        row = {"is_clean": True, "made": made}
        echo_json(row) if as_json else say(f"{run}: {made}; nothing to audit")
        return
    samples, _ = sum_rows(read_ledger(run))
    with progress("auditing", samples, "samples") as advance:
        report = audit_run(config, run, build_preparation, advance)
    origin = read_origins(run).get(BRANCH)
    if as_json:
        whose = {} if origin is None else {BRANCH: origin.to_json()}
        echo_json({"is_clean": report.is_clean, **asdict(report), **whose})
    else:
        say(render_audit(run, report))
        if origin is not None:
            steps = f"The first {origin.step:,} of these steps"
            say(f"{steps} are those of the run {origin.run}, of which this is a branch.")
    if not report.is_clean:
        raise typer.Exit(EXIT_USER)


def render_audit(run: Path, report: AuditReport) -> str:
    """The verdict, then the first differences of each kind."""
    counted = f"{report.steps:,} steps, {report.samples:,} samples, "
    counted += f"{report.tokens:,} tokens trained on"
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


@app.command()
def cancel(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run's folder, or a sweep's; with --sweep the one that holds the sweep (runs).",
            show_default=False,
            callback=find_run,
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
    from launcher.cancel import cancel_runs

    runs = _choose(run, sweep)
    is_sweep = sweep is not None or len(runs) != 1 or runs[0] != run
    cancelled, problems = cancel_runs(runs, at_once=at_once)
    if as_json:
        rows = [asdict(result) for result in cancelled]
        if is_sweep or rows:
            echo_json(rows if is_sweep else rows[0])
    else:
        for result in cancelled:
            for line in result.text:
                say(f"{result.folder}: {line}")
    if problems:
        raise ClusterError(problems)


def _choose(run: Path | None, sweep: str | None) -> list[Path]:
    """The run, or all runs of a sweep: by its name, or of which ``run`` is the folder."""
    from lmscale.runs.run_folder import load_run_config
    from lmscale.runs.sweep_folder import find_sweep, read_sweep

    if sweep is not None:
        return [member.folder for member in find_sweep(run or RUNS, sweep).runs]
    if run is None:
        raise ConfigError("Name the run's folder, or a sweep with --sweep NAME.")
    if (run / SWEEP_FILE).is_file():
        return [member.folder for member in read_sweep(run).runs]
    if not (run / DATA_SLURM_FOLDER).is_dir():  # of a corpus or of shards
        load_run_config(run)  # refuses what is no run
    return [run]
