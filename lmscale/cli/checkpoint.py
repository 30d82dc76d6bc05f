"""``lmscale checkpoint``: what a run has saved, whether it is whole, and what may go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmscale.cli.checkpoint_view import (
    LISTED,
    listed_to_json,
    render_checkpoint,
    render_listed,
    render_pruned,
    render_verdict,
)
from lmscale.cli.options import JsonOption, RunArgument, echo_json
from lmscale.errors import EXIT_USER, CheckpointError, ConfigError
from lmscale.files.atomic import writing
from lmscale.files.jsonl import sift_rows
from lmscale.files.printing import say
from lmscale.files.run_files import METRICS_FILE
from lmscale.files.run_rows import FIGURES

if TYPE_CHECKING:
    from lmscale.checkpoint.places.place import Place
    from lmscale.checkpoint.retention import Listed, Rule

app = typer.Typer(help="See, verify and prune what runs have saved.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class _Saves:
    """A run's checkpoints at one look."""

    place: Place
    rule: Rule
    listed: tuple[Listed, ...]  # the newest first

    @property
    def committed(self) -> list[Listed]:
        from lmscale.checkpoint.retention import TORN

        return [saved for saved in self.listed if saved.state != TORN]


def _look_at(run: Path) -> _Saves:
    from lmscale.checkpoint.places.run_place import open_place
    from lmscale.checkpoint.retention import plan_rule, survey
    from lmscale.history.history import read_history
    from lmscale.runs.run_folder import load_run_config
    from lmscale.runs.sweep_folder import refuse_sweep
    from lmscale.train.kept import plan_kept

    refuse_sweep(run)
    config = load_run_config(run)
    place = open_place(config, run)
    rule = plan_rule(config.checkpoint, place.list_steps(), run)
    history = read_history(run)
    spare = plan_kept(config, run, num_rewinds=len(history.rewinds))
    return _Saves(place=place, rule=rule, listed=survey(place, rule, history.undone, spare))


@app.command("list")
def list_(run: RunArgument, as_json: JsonOption = False) -> None:
    """List what RUN has saved, the newest first, and why each is kept.

    Reads the manifests only: `lmscale checkpoint verify` reads the files.
    """
    from lmscale.cli.runs.view import print_table

    saves = _look_at(run)
    if as_json:
        rows = [listed_to_json(saved) for saved in saves.listed]
        content = {"run": str(run), "location": saves.place.location, "checkpoints": rows}
        echo_json(content)
        return
    if not saves.listed:
        say(f"{saves.place.location} holds no checkpoints yet.")
        return
    print_table(LISTED, map(render_listed, saves.listed), num_texts=len(LISTED) - 3)
    for saved in saves.listed:
        for problem in saved.problems:
            say(problem)


@app.command()
def verify(
    run: RunArgument,
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="This one only; default: all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every file of RUN's checkpoints and compare it with the size and hash in the manifest.

    The exit code is 2 when any committed one is damaged, and every problem is named.
    """
    from lmscale.checkpoint.retention import find_problems

    saves = _look_at(run)
    chosen = saves.committed if step is None else [_find(saves, step)]
    rows = []
    with _progress("verifying", chosen, as_json=as_json) as advance:
        for saved in chosen:
            damage = find_problems(saves.place, saved, advance)
            row = {"step": saved.step, "name": saved.name}
            rows.append(row | {"is_whole": not damage, "problems": damage})
            if not as_json and not damage:
                say(render_verdict(saved))
    faults = [problem for row in rows for problem in row["problems"]]
    if as_json:
        echo_json({"run": str(run), "checkpoints": rows})
        if faults:
            raise typer.Exit(EXIT_USER)
    elif faults:
        raise CheckpointError(faults)
    elif not chosen:
        say(f"{saves.place.location} holds no checkpoints yet.")


@app.command()
def show(
    run: RunArgument,
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Which one; default: the newest.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a checkpoint of RUN: its files, its writer, its place in the data."""
    saves = _look_at(run)
    if step is None and not saves.committed:
        raise CheckpointError(f"{saves.place.location} holds no checkpoint yet.")
    saved = saves.committed[0] if step is None else _find(saves, step)
    if saved.manifest is None:
        raise CheckpointError(saved.problems)
    figures = _figures_at(run, saved.step)
    if as_json:
        content = {"name": saved.name, "state": saved.state, "kept_for": saved.kept_for}
        content |= {"figures": figures, "manifest": saved.manifest.to_json()}
        echo_json(content)
        return
    say(render_checkpoint(saved, figures))


@app.command()
def prune(
    run: RunArgument,
    keep_last: Annotated[
        int | None,
        typer.Option(
            "--keep-last", min=1, help="Good ones to keep. Default: the run's own setting."
        ),
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option(
            "--keep-every", min=0, help="Keep multiples of N steps. Default: the run's own setting."
        ),
    ] = None,
    asked: Annotated[
        bool, typer.Option("--asked", help="Those that somebody asked for may go as well.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove checkpoints of RUN by rule, and what interrupted saves have left.

    The newest one whose files are whole never goes; they are read to make sure. The best by
    checkpoint.keep_best stay, and until all steps are done what the run itself may go back to.
    Refused while the run is live: it prunes by itself at every save, and a save under way cannot be
    told from one that was cut off.
    """
    from lmscale.checkpoint.retention import plan_prune, remove, spare_a_sound_one

    saves = _look_at(run)
    if not dry_run:
        _refuse_live(run)
    changes = {"keep_last": keep_last, "keep_every_steps": keep_every}
    given = {name: value for name, value in changes.items() if value is not None}
    rule = replace(saves.rule, **given)
    doomed = plan_prune(saves.listed, rule, with_asked=asked)
    with _progress("verifying", saves.committed[:1], as_json=as_json) as advance:
        doomed, sound = spare_a_sound_one(saves.place, saves.listed, doomed, advance)
    if doomed and not dry_run:
        _refuse_live(run)  # reading takes its time
        remove(run, saves.place, [saved.step for saved in doomed])
    remaining = [saved for saved in saves.listed if saved not in doomed]
    if as_json:
        content = {
            "run": str(run),
            "dry_run": dry_run,
            "sound_step": None if sound is None else sound.step,
            "deleted": list(map(listed_to_json, doomed)),
            "kept": list(map(listed_to_json, remaining)),
        }
        echo_json(content)
        return
    say(render_pruned(doomed, remaining, sound, is_dry=dry_run))


def _find(saves: _Saves, step: int) -> Listed:
    match = next((saved for saved in saves.committed if saved.step == step), None)
    if match is None:
        steps = ", ".join(str(saved.step) for saved in saves.committed) or "none"
        raise CheckpointError(
            f"{saves.place.location} has no checkpoint of step {step}. There are: {steps}."
        )
    return match


def _refuse_live(run: Path) -> None:
    from lmscale.runs.attempts import read_attempts
    from lmscale.runs.lease import is_beating, read_lease
    from lmscale.runs.run_folder import find_gone

    with writing("the lease", run):
        lease = read_lease(run)
    if lease is None or lease.ended is not None or find_gone(run, read_attempts(run)):
        return
    if is_beating(run):
        raise ConfigError(
            f"{run} is being trained (attempt {lease.attempt}, rank 0: {lease.rank0}), and prunes "
            "by itself at every save. Wait until it ends, or stop it: touch the file `stop` in the "
            "folder. --dry-run says what would go."
        )


def _figures_at(run: Path, step: int) -> dict[str, float]:
    """What metrics.jsonl holds of a step: its loss, and scores where it was evaluated."""
    figures: dict[str, float] = {}
    for row in sift_rows(run / METRICS_FILE, FIGURES).rows:
        if row["step"] == step:
            figures |= {name: value for name, value in row.items() if "/" in name}
    return figures


@contextmanager
def _progress(what: str, chosen: Sequence[Listed], *, as_json: bool) -> Iterator[Any]:
    from lmscale.files.progress import BYTES, progress

    total = sum(saved.bytes or 0 for saved in chosen)
    if as_json or not total:
        yield lambda size: None
        return
    with progress(what, total, BYTES) as advance:
        yield advance
