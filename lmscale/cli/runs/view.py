"""How runs are shown: as a table, as lines of text, as JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmscale.cli.options import print_notes, print_warnings, render_line
from lmscale.cli.runs.figures import render_figure
from lmscale.errors import LmscaleError
from lmscale.files.printing import count_of, render_bytes, render_duration, render_time
from lmscale.files.redact import printable, printable_name
from lmscale.runs.origins import LABELS, describe_origin
from lmscale.runs.profiles import describe_profiles
from lmscale.runs.sweep_folder import job_outputs

if TYPE_CHECKING:
    from launcher.history import Stretch
    from launcher.status import RunState
    from lmscale.cli.runs.look import RunLook, RunPage
    from lmscale.files.jsonl import Row
    from lmscale.runs.goodput import Forecast, Goodput
    from lmscale.runs.run_folder import RunStatus
    from lmscale.watch.heartbeat import Beat

Lines = Iterator[tuple[str, object]]  # a name and a text, which ``render_line`` puts together
MAX_STRETCHES = 10
MAX_SHOWN = 5
_CAUSES = {
    "productive": "in steps that count",
    "redone": "in steps done again after a restart, and in what a kill cut off",
    "undone": "in steps skipped or rewound",
    "stalls": "waiting for data",
    "saves": "held up by saves",
    "evaluation": "evaluating",
    "start": "starting up",
    "load": "loading a checkpoint",
    "down": "down, between attempts",
    "other": "otherwise",
}
NUMBERS = ("step", "tokens", "loss", "tokens/s", "goodput", "restarts")


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]], *, num_texts: int) -> None:
    """Columns of text, then columns of numbers, which stand on the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def show(text: str) -> Text:  # as it stands: no markup of rich's, nor a terminal's
        return Text(printable(" ".join(text.splitlines())))

    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(names):
        table.add_column(show(name), justify="left" if number < num_texts else "right")
    for row in rows:
        table.add_row(*map(show, row))
    # A pipe has no width to fit; nothing may be cut or wrapped there.
    console = Console() if Console().is_terminal else Console(width=1000)
    console.print(table)


def print_runs(
    looks: Mapping[Path, RunLook | LmscaleError],
    columns: Sequence[str] = ("state", *NUMBERS),
    values: Mapping[Path, Mapping[str, str]] | None = None,
    keys: Sequence[str] = (),
) -> None:
    """A table of runs, of a sweep's with the ``values`` that the ``keys`` were given, and warnings
    of what is damaged in them.
    """
    rows, damaged = [], []
    for folder, look in looks.items():
        if isinstance(look, LmscaleError):
            cells = dict.fromkeys(columns, "-") | {"state": render_problems(look, folder)}
        else:
            cells = render_numbers(look.status) | {"state": look.state.line}
            damaged += [f"{folder.name}: {problem}" for problem in look.status.problems]
        given = values[folder] if values else {}
        texts = (*(given.get(key, "-") for key in keys), *(cells[name] for name in columns))
        rows.append([folder.name, *texts])
    print_table(("run", *keys, *columns), rows, num_texts=2 + len(keys))
    print_warnings(damaged)


def render_problems(error: LmscaleError, folder: Path) -> str:
    """The first problem, its files named from the run's folder on, and how many more there are."""
    first = error.problems[0].replace(f"{folder}/", "")
    others = len(error.problems) - 1
    return f"{first} (and {others} more)" if others else first


def render_numbers(status: RunStatus) -> dict[str, str]:
    """The cells of a run by their headings; ``-`` where nothing is known yet."""
    own, heldout = status.own_figures, status.heldout
    return {
        "step": f"{status.step:,}/{status.config.train.steps:,}",
        "tokens": render_number(status.figures.get("train/tokens"), ",.0f"),
        "loss": render_number(own.get("train/loss"), ".4f"),
        "held out": render_number(heldout and heldout[1], ".4f"),
        "tokens/s": render_number(own.get("speed/targets_per_second"), ",.0f"),
        "goodput": f"{status.goodput.fraction:.1%}" if status.attempts else "-",
        "restarts": str(status.goodput.restarts),
    }


def render_number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def render_page(page: RunPage) -> str:
    status = page.look.status
    lines = [render_line(name, text) for name, text in _describe_page(page)]
    loss_unit = status.config.objective.loss_unit
    for name, value in status.figures.items():
        # The rest are the row's own step and time, and the table of the time says more.
        if "/" in name and not name.startswith("goodput/"):
            number, unit = render_figure(name, value, loss_unit)
            shown = f"{number:>14} {unit}".rstrip()
            where = _at_step(status, name) + _of_windows(status, name)
            lines.append(f"{printable_name(name):32} {shown}{where}")
    return "\n".join(lines)


def _describe_page(page: RunPage) -> Lines:
    status, state = page.look.status, page.look.state
    yield "run", status.folder
    yield "state", state.line
    for error in page.errors:
        yield "", error
    for problem in (*status.problems, *page.damaged):
        yield "damaged", problem
    yield from _describe_faults(status.faults)
    for name, label in LABELS.items():
        if origin := page.origins.get(name):
            yield label, describe_origin(name, origin)
    yield from _describe_job(page.look)
    for job in page.other_jobs:
        where = f" on {job['nodes']}" if job["nodes"] else ""
        why = f" ({job['reason']})" if job["reason"] else ""
        yield f"{job['kind']} job", f"{job['job']}{where}, {job['state'].lower()}{why}"
    if page.note:
        yield "Slurm", page.note
    yield from _describe_figures(status)
    if page.forecast is not None:
        yield from _describe_forecast(state, page.forecast)
    for number, line in enumerate(page.mixtures.lines() if page.mixtures else ()):
        yield "" if number else "mixture", line
    yield from _describe_time_spent(status.goodput)
    yield from _describe_history(page.history)
    if status.watch:
        yield "watchdog", f"{render_time(status.watch['time'])} {status.watch['text']}"
    yield from _describe_places(page.heartbeats)
    yield from _describe_checkpoints(status)
    yield from _describe_guard(status)
    for number, line in enumerate(describe_profiles(status.folder)):
        yield "" if number else "profiles", line
    show = f"lmscale runs logs {status.folder}"
    show += " --job" if state.name == "failed" and state.job is not None else ""
    yield "logs", f"{status.folder / 'logs'} ({show})"


def _describe_figures(status: RunStatus) -> Lines:
    """Those of ``NUMBERS`` with their units, and the step that each of them is of."""
    cells, loss_unit = render_numbers(status), status.config.objective.loss_unit
    yield "step", cells["step"]
    for name, key, figure, unit in (
        ("trained on", "tokens", "train/tokens", "tokens"),
        ("loss", "loss", "train/loss", loss_unit),
        ("speed", "tokens/s", "speed/targets_per_second", "tokens/s"),
    ):
        is_known = cells[key] != "-"
        yield name, f"{cells[key]} {unit}{_at_step(status, figure)}" if is_known else "-"
    yield "goodput", _render_share(status.goodput) if status.attempts else cells["goodput"]
    yield "restarts", cells["restarts"]


def _of_windows(status: RunStatus, figure: str) -> str:
    """Of how many windows a held-out loss is: the loop's series may be of others than the end's."""
    limit = status.config.evaluation.max_windows
    if not figure.endswith("/loss") or not figure.startswith(("evaluation/", "final/")):
        return ""
    return (
        ", of all windows"
        if limit is None or figure.startswith("final/")
        else (f", of {limit:,} windows at most")
    )


def _at_step(status: RunStatus, figure: str) -> str:
    step = status.figure_steps.get(figure)
    return "" if step is None else f"  at step {step:,}"


def _describe_job(look: RunLook) -> Lines:
    folder, state = look.status.folder, look.state
    if state.job is None:
        return
    parts = [state.job + (f" on {state.nodes}" if state.nodes else "")]
    if state.starts_at is not None and state.starts_at > time.time():
        parts.append(f"expected to start {render_time(state.starts_at)}")
    if state.left_seconds is not None:
        parts.append(f"{render_duration(state.left_seconds)} left of its time limit")
    yield "job", ", ".join(parts)
    output = job_outputs(folder)[0] / f"job-{state.job}.out"
    if output.exists():
        yield "job's output", f"{output} (lmscale runs logs {folder} --job)"


def _describe_forecast(state: RunState, forecast: Forecast) -> Lines:
    count = forecast.stretch_steps
    steps = "the last step" if count == 1 else f"the last {count:,} steps"
    left, with_goodput = forecast.seconds_left, forecast.seconds_left_with_goodput
    if state.name in ("running", "hung", "ending"):
        text = f"{_render_end(left)} at the speed of {steps}"
        if with_goodput is not None:
            share = f"{forecast.goodput:.0%}"
            text += f"; {_render_end(with_goodput)} with the goodput so far, {share}"
        yield "estimated end", text
    elif state.name not in ("finished", "failed", "cancelled"):
        yield "estimated end", f"{render_duration(left)} of steps are left, by {steps}"


def _render_end(seconds: float) -> str:
    return f"{render_time(time.time() + seconds)} (in {render_duration(seconds)})"


def _describe_history(history: Sequence[Stretch]) -> Lines:
    hidden = max(0, len(history) - MAX_STRETCHES)
    if hidden:
        yield "attempts", f"{hidden:,} earlier ones; --json prints them all"
    for number, stretch in enumerate(history[hidden:], start=hidden + 1):
        yield f"attempt {number}", stretch.line
        for node in stretch.excluded:
            yield "", f"left out {node}"
    if steps := sum(stretch.lost_steps for stretch in history):
        seconds = render_duration(sum(stretch.lost_seconds for stretch in history))
        yield "lost", f"{count_of(steps, 'whole step')} in all, {seconds} of training"


def _describe_places(beats: Sequence[Beat]) -> Lines:
    """Where the ranks are, those in the same place on one line; the fewest first."""
    from lmscale.ranks.ranks import name_ranks

    groups: dict[tuple[str, int], list[Beat]] = {}
    for beat in beats:
        groups.setdefault((beat.phase, beat.step), []).append(beat)
    for (phase, step), members in sorted(groups.items(), key=lambda item: len(item[1])):
        hosts = ", ".join(dict.fromkeys(beat.host for beat in members))
        who = f"{name_ranks([beat.rank for beat in members])} on {hosts}"
        seconds = max(beat.phase_seconds + time.time() - beat.time for beat in members)
        yield "", f"{who}: {phase} of step {step:,} for {render_duration(seconds)}"


def _render_share(goodput: Goodput) -> str:
    return (
        f"{goodput.fraction:.1%} of the wall time, "
        f"{goodput.running_fraction:.1%} of the time in which it ran"
    )


def _describe_time_spent(goodput: Goodput) -> Lines:
    """A line for every cause that took time to speak of."""
    if not goodput.attempts:
        return
    wall, running = map(render_duration, (goodput.wall_seconds, goodput.running_seconds))
    yield "time", f"{wall} in all, {running} of them running"
    for cause, seconds in goodput.seconds.items():
        fraction = goodput.fractions[cause]
        if seconds >= 0.5 or fraction >= 0.0005:
            share = f"{fraction:.1%}"
            yield "", f"{share:>6}  {render_duration(seconds):>12}  {_CAUSES[cause]}"


def _describe_checkpoints(status: RunStatus) -> Lines:
    for last in status.commits[-1:]:
        age, size = render_duration(time.time() - last.time), render_bytes(last.bytes)
        why = ", asked for" if last.reason == "asked" else ""
        behind = max(0, status.step - last.step)
        text = f"step {last.step:,}, {age} ago, {size}{why}; {behind:,} steps were done since"
        yield "last checkpoint", text
    yield "checkpoints", ", ".join(commit.name for commit in status.commits) or "none yet"
    failed = status.failed_saves
    for latest in failed[-1:]:
        count = f"{len(failed)} attempt{'s' if len(failed) > 1 else ''} ended because a save failed"
        when = render_time(latest["time"])
        yield "failed saves", f"{count}, the last at {when} ({latest['reason']})"
    for row in status.passed_over[-MAX_SHOWN:]:
        why = "; ".join(row["why"])
        yield "passed over", f"{row['checkpoint']} at {render_time(row['time'])}: {why}"


def _describe_guard(status: RunStatus) -> Lines:
    """What the guard did and saw; nothing of a run in which it had nothing to do."""
    rewinds, figures = status.rewinds, status.figures
    counts = (
        ("rewind", "", len(rewinds)),
        ("sample", " jumped", sum(int(row.get("jump_samples", 0)) for row in rewinds)),
        ("non-finite step", "", int(figures.get("guard/nonfinite_steps") or 0)),
        ("spike", "", int(figures.get("guard/spike_steps") or 0)),
        ("skipped step", "", int(figures.get("train/skipped_steps") or 0)),
    )
    parts = [f"{n:,} {name}{'s' if n != 1 else ''}{more}" for name, more, n in counts if n]
    if parts:
        yield "guard", ", ".join(parts)
    if len(rewinds) > MAX_SHOWN:
        yield "", f"{len(rewinds) - MAX_SHOWN:,} earlier rewinds: --json"
    for row in rewinds[-MAX_SHOWN:]:
        text = f"rewind {row['number']} at {render_time(row['time'])}: from step "
        text += f"{row['at_step']:,} back to {row['to_step']:,}, {row['jump_samples']:,} samples "
        yield "", f"{text}jumped: {row['why']}"
    for path in status.evidence[-MAX_SHOWN:]:
        yield "guard's evidence", path


def _describe_faults(faults: Sequence[Row]) -> Lines:
    """That things were made to fail on purpose, as loudly as a line can say it."""
    if not faults:
        return
    kinds = Counter(str(row.get("fault", "?")).partition(":")[0] for row in faults)
    named = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    last = faults[-1]
    yield "!!! FAULTS !!!", f"INJECTED ON PURPOSE, {len(faults):,} of them: {named}"
    yield (
        "",
        f"the last at {render_time(last['time'])}: {last.get('fault', '?')}. This is a test of "
        "lmscale (LMSCALE_FAULTS), not a run to judge by its figures.",
    )


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
        "figures": status.own_figures,
        "figure_steps": dict(status.figure_steps) if status.own_figures else {},
        "goodput": _goodput_to_json(status.goodput),
        "attempts": list(status.attempt_starts),
        "checkpoints": [commit.name for commit in status.commits],
        "problems": list(status.problems),
        "heldout": dict(zip(("name", "loss"), status.heldout or (), strict=False)) or None,
    }


def _goodput_to_json(goodput: Goodput) -> dict[str, Any]:
    return {
        **asdict(goodput),
        "wall_seconds": goodput.wall_seconds,
        "running_seconds": goodput.running_seconds,
        "fraction": goodput.fraction,
        "running_fraction": goodput.running_fraction,
        "fractions": goodput.fractions,
    }


def print_note(note: str) -> None:
    """On stderr: what is piped on are the runs."""
    if note:
        print_notes([note])


def loss_of(look: RunLook | LmscaleError) -> float:
    """For sorting: what has no loss comes last."""
    loss = None if isinstance(look, LmscaleError) else look.status.own_figures.get("train/loss")
    return float("inf") if loss is None else loss
