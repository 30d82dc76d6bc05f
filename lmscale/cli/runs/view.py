"""How runs are shown: as a table, as lines of text, as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lmscale.cli.runs.health import (
    goodput_json,
    render_checkpoints,
    render_faults,
    render_guard,
    render_share,
    render_time_spent,
)
from lmscale.cli.units import render_duration, render_line, render_time
from lmscale.errors import LmscaleError
from lmscale.runs.sweep_folder import job_outputs

if TYPE_CHECKING:
    from launcher.history import Stretch
    from lmscale.cli.runs.look import RunLook
    from lmscale.cli.runs.page import RunPage
    from lmscale.runs.forecast import Forecast
    from lmscale.runs.run_folder import RunStatus
    from lmscale.runs.sweep_folder import SweepMember
    from lmscale.watch.heartbeat import Beat

MAX_STRETCHES = 10
NUMBERS = ("step", "tokens", "loss", "tokens/s", "goodput", "restarts")


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]], *, num_texts: int) -> None:
    """Columns of text, then columns of numbers, which stand on the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, box=None, pad_edge=False)
    for column in table.columns[num_texts:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A pipe has no width to fit; nothing may be cut or wrapped there.
    console = Console() if Console().is_terminal else Console(width=1000)
    console.print(table)


def render_row(folder: Path, look: RunLook | LmscaleError) -> list[str]:
    """The cells of a run in ``runs list``."""
    if isinstance(look, LmscaleError):
        return [folder.name, render_problems(look, folder), *["-"] * len(NUMBERS)]
    return [folder.name, look.state.line, *render_numbers(look.status).values()]


def render_problems(error: LmscaleError, folder: Path) -> str:
    """The first problem, its files named from the run's folder on, and how many more there are."""
    first = error.problems[0].replace(f"{folder}/", "")
    others = len(error.problems) - 1
    return f"{first} (and {others} more)" if others else first


def render_numbers(status: RunStatus) -> dict[str, str]:
    """The cells of a run under the headings of ``NUMBERS``; ``-`` where nothing is known yet."""
    figures = status.figures
    cells = (
        f"{status.step:,}/{status.config.train.steps:,}",
        render_number(figures.get("train/tokens"), ",.0f"),
        render_number(figures.get("train/loss"), ".4f"),
        render_number(figures.get("speed/tokens_per_second"), ",.0f"),
        f"{status.goodput.fraction:.1%}" if status.attempts else "-",
        str(status.goodput.restarts),
    )
    return dict(zip(NUMBERS, cells, strict=True))


def render_number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def render_page(page: RunPage) -> str:
    """A run's state as lines of text."""
    status, state = page.look.status, page.look.state
    lines = [render_line("run", status.folder), render_line("state", state.line)]
    lines += [render_line("", error) for error in page.errors]
    lines += render_faults(status.faults)
    lines += _render_job(page.look)
    lines += [render_line(f"{job['kind']} job", _describe_other(job)) for job in page.other_jobs]
    lines += [render_line("Slurm", page.note)] if page.note else []
    lines += _render_figures(status)
    lines += _render_forecast(page.look, page.forecast)
    lines += render_time_spent(status.goodput)
    lines += _render_history(page.history)
    if page.watch:
        text = f"{render_time(page.watch['time'])} {page.watch['text']}"
        lines.append(render_line("watchdog", text))
    lines += [render_line("", place) for place in render_places(page.heartbeats)]
    lines += render_checkpoints(status)
    lines += render_guard(status)
    show = f"lmscale runs logs {status.folder}"
    show += " --job" if state.name == "failed" and state.job is not None else ""
    lines.append(render_line("logs", f"{status.folder / 'logs'} ({show})"))
    lines += [
        f"{name:32} {render_number(value, '.6g'):>14}{_at_step(status, name)}"
        for name, value in status.figures.items()
        # The rest are the row's own step and time, and the table of the time says more.
        if "/" in name and not name.startswith("goodput/")
    ]
    return "\n".join(lines)


def _render_figures(status: RunStatus) -> list[str]:
    """Those of ``NUMBERS``, with the step that each of them is of."""
    cells = render_numbers(status)
    names = {
        "tokens": "train/tokens",
        "loss": "train/loss",
        "tokens/s": "speed/tokens_per_second",
    }
    cells |= {name: cells[name] + _at_step(status, figure) for name, figure in names.items()}
    if status.attempts:
        cells["goodput"] = render_share(status.goodput)
    return [render_line(name, cell) for name, cell in cells.items()]


def _at_step(status: RunStatus, figure: str) -> str:
    step = status.figure_steps.get(figure)
    return "" if step is None else f"  at step {step:,}"


def _describe_other(job: Mapping[str, str]) -> str:
    where = f" on {job['nodes']}" if job["nodes"] else ""
    why = f" ({job['reason']})" if job["reason"] else ""
    return f"{job['job']}{where}, {job['state'].lower()}{why}"


def _render_job(look: RunLook) -> list[str]:
    status, state = look.status, look.state
    if state.job is None:
        return []
    parts = [state.job + (f" on {state.nodes}" if state.nodes else "")]
    if state.starts_at is not None and state.starts_at > time.time():
        parts.append(f"expected to start {render_time(state.starts_at)}")
    if state.left_seconds is not None:
        parts.append(f"{render_duration(state.left_seconds)} left of its time limit")
    lines = [render_line("job", ", ".join(parts))]
    output = job_outputs(status.folder)[0] / f"job-{state.job}.out"
    if output.exists():
        lines.append(
            render_line("job's output", f"{output} (lmscale runs logs {status.folder} --job)")
        )
    return lines


def _render_forecast(look: RunLook, forecast: Forecast | None) -> list[str]:
    if forecast is None or look.state.name in ("finished", "failed", "cancelled"):
        return []
    count = forecast.stretch_steps
    steps = "the last step" if count == 1 else f"the last {count:,} steps"
    with_goodput = forecast.seconds_left_with_goodput
    if look.state.name not in ("running", "hung", "ending"):
        text = f"{render_duration(forecast.seconds_left)} of steps are left, by {steps}"
        return [render_line("estimated end", text)]
    now = time.time()
    text = f"{_render_end(now, forecast.seconds_left)} at the speed of {steps}"
    if with_goodput is not None:
        share = f"{forecast.goodput:.0%}"
        text += f"; {_render_end(now, with_goodput)} with the goodput so far, {share}"
    return [render_line("estimated end", text)]


def _render_end(now: float, seconds: float) -> str:
    return f"{render_time(now + seconds)} (in {render_duration(seconds)})"


def _render_history(history: Sequence[Stretch]) -> list[str]:
    lines = []
    hidden = max(0, len(history) - MAX_STRETCHES)
    if hidden:
        lines.append(render_line("attempts", f"{hidden:,} earlier ones; --json prints them all"))
    for number, stretch in list(enumerate(history, start=1))[hidden:]:
        lines.append(render_line(f"attempt {number}", stretch.line))
        lines += [render_line("", f"left out {node}") for node in stretch.excluded]
    return lines


def render_places(beats: Sequence[Beat]) -> list[str]:
    """Where the ranks are, those in the same place on one line; the fewest first."""
    from lmscale.ranks.ranks import name_ranks

    groups: dict[tuple[str, int], list[Beat]] = {}
    for beat in beats:
        groups.setdefault((beat.phase, beat.step), []).append(beat)
    lines = []
    for (phase, step), members in sorted(groups.items(), key=lambda item: len(item[1])):
        hosts = ", ".join(dict.fromkeys(beat.host for beat in members))
        who = f"{name_ranks([beat.rank for beat in members])} on {hosts}"
        seconds = max(beat.phase_seconds + time.time() - beat.time for beat in members)
        lines.append(f"{who}: {phase} of step {step:,} for {render_duration(seconds)}")
    return lines


def to_json(folder: Path, look: RunLook | LmscaleError) -> dict[str, Any]:
    """A run as ``runs list --json`` prints it."""
    if isinstance(look, LmscaleError):
        return {"run": folder.name, "folder": str(folder), "problems": list(look.problems)}
    status, state = look.status, asdict(look.state)
    return {
        "run": status.config.run.name,
        "folder": str(status.folder),
        "state": state.pop("name"),
        **state,
        "step": status.step,
        "steps": status.config.train.steps,
        "figures": status.figures,
        "figure_steps": dict(status.figure_steps),
        "goodput": goodput_json(status.goodput),
        "attempts": list(status.attempt_starts),
        "checkpoints": [commit.name for commit in status.commits],
        "heldout": dict(zip(("name", "loss"), status.heldout or (), strict=False)) or None,
    }


def print_note(note: str) -> None:
    """On stderr: what is piped on are the runs."""
    if note:
        typer.echo(f"note: {note}", err=True)


def print_sweep(
    keys: Sequence[str], members: Sequence[tuple[SweepMember, RunLook | LmscaleError]]
) -> None:
    """The runs of a sweep with the values they were given."""
    has_heldout = any(_heldout_of(look) is not None for _, look in members)
    names = ["run", *keys, "state", "step", "loss", *["held out"] * has_heldout, "tokens/s"]
    rows = []
    for member, look in members:
        row = [member.run, *(str(member.values.get(key, "-")) for key in keys)]
        if isinstance(look, LmscaleError):
            row += [render_problems(look, member.folder), *["-"] * (len(names) - len(keys) - 2)]
        else:
            numbers = render_numbers(look.status)
            heldout = [render_number(_heldout_of(look), ".4f")] * has_heldout
            row += [look.state.line, numbers["step"], numbers["loss"], *heldout]
            row.append(numbers["tokens/s"])
        rows.append(row)
    print_table(names, rows, num_texts=2 + len(keys))


def loss_of(look: RunLook | LmscaleError) -> float:
    """For sorting: what has no loss comes last."""
    if isinstance(look, LmscaleError):
        return float("inf")
    loss = look.status.figures.get("train/loss")
    return float("inf") if loss is None else loss


def _heldout_of(look: RunLook | LmscaleError) -> float | None:
    if isinstance(look, LmscaleError) or look.status.heldout is None:
        return None
    return look.status.heldout[1]
