"""What ``lmscale runs status`` says of a run's health: its time, its checkpoints, its guard."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lmscale.cli.units import render_bytes, render_duration, render_line, render_time

if TYPE_CHECKING:
    from lmscale.files.jsonl import Row
    from lmscale.runs.goodput import Goodput
    from lmscale.runs.run_folder import RunStatus

MAX_SHOWN = 5
_CAUSES = {
    "productive": "in steps that count",
    "redone": "in steps done again after a restart",
    "undone": "in steps skipped or rewound",
    "stalls": "waiting for data",
    "saves": "held up by saves",
    "evaluation": "evaluating",
    "start": "starting up",
    "load": "loading a checkpoint",
    "down": "down, between attempts",
    "other": "otherwise",
}


def render_share(goodput: Goodput) -> str:
    return (
        f"{goodput.fraction:.1%} of the wall time, "
        f"{goodput.running_fraction:.1%} of the time in which it ran"
    )


def render_time_spent(goodput: Goodput) -> list[str]:
    """A line for every cause that took time to speak of."""
    if not goodput.attempts:
        return []
    wall, running = map(render_duration, (goodput.wall_seconds, goodput.running_seconds))
    lines = [render_line("time", f"{wall} in all, {running} of them running")]
    for cause, seconds in goodput.seconds.items():
        if seconds >= 0.5 or goodput.fractions[cause] >= 0.0005:
            share = f"{goodput.fractions[cause]:.1%}"
            lines.append(
                render_line("", f"{share:>6}  {render_duration(seconds):>12}  {_CAUSES[cause]}")
            )
    return lines


def render_checkpoints(status: RunStatus, now: float | None = None) -> list[str]:
    lines = []
    for last in status.commits[-1:]:
        age = render_duration((time.time() if now is None else now) - last.time)
        size = render_bytes(last.bytes)
        why = ", asked for" if last.reason == "asked" else ""
        behind = max(0, status.step - last.step)
        lines.append(
            render_line(
                "last checkpoint",
                f"step {last.step:,}, {age} ago, {size}{why}; {behind:,} steps were done since",
            )
        )
    names = [commit.name for commit in status.commits]
    lines.append(render_line("checkpoints", ", ".join(names) or "none yet"))
    failed = status.failed_saves
    if failed:
        latest = failed[-1]
        count = f"{len(failed)} attempt{'s' if len(failed) > 1 else ''} ended because a save failed"
        text = f"{count}, the last at {render_time(latest['time'])} ({latest['reason']})"
        lines.append(render_line("failed saves", text))
    for row in status.passed_over[-MAX_SHOWN:]:
        text = f"{row['checkpoint']} at {render_time(row['time'])}: {'; '.join(row['why'])}"
        lines.append(render_line("passed over", text))
    return lines


def render_guard(status: RunStatus) -> list[str]:
    """What the guard did and saw; nothing of a run in which it had nothing to do."""
    rewinds = status.rewinds
    lines = []
    jumped = sum(int(row.get("jump_samples", 0)) for row in rewinds)
    parts = [
        f"{count:,} {name}{'s' if count != 1 else ''}"
        for name, count in (
            ("rewind", len(rewinds)),
            ("sample", jumped),
            ("non-finite step", _count(status, "guard/nonfinite_steps")),
            ("spike", _count(status, "guard/spike_steps")),
            ("skipped step", _count(status, "train/skipped_steps")),
        )
        if count
    ]
    parts = [f"{part} jumped" if " sample" in part else part for part in parts]
    if parts:
        lines.append(render_line("guard", ", ".join(parts)))
    if len(rewinds) > MAX_SHOWN:
        lines.append(render_line("", f"{len(rewinds) - MAX_SHOWN:,} earlier rewinds: --json"))
    for row in rewinds[-MAX_SHOWN:]:
        text = f"rewind {row['number']} at {render_time(row['time'])}: from step "
        text += f"{row['at_step']:,} back to {row['to_step']:,}, {row['jump_samples']:,} samples "
        lines.append(render_line("", f"{text}jumped: {row['why']}"))
    lines += [render_line("guard's evidence", path) for path in status.evidence[-MAX_SHOWN:]]
    return lines


def _count(status: RunStatus, name: str) -> int:
    return int(status.figures.get(name) or 0)


def render_faults(faults: Sequence[Row]) -> list[str]:
    """That things were made to fail on purpose, as loudly as a line can say it."""
    if not faults:
        return []
    kinds = Counter(str(row.get("fault", "?")).partition(":")[0] for row in faults)
    named = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    last = faults[-1]
    return [
        render_line("!!! FAULTS !!!", f"INJECTED ON PURPOSE, {len(faults):,} of them: {named}"),
        render_line(
            "",
            f"the last at {render_time(last['time'])}: {last.get('fault', '?')}. This is a test of "
            "lmscale (LMSCALE_FAULTS), not a run to judge by its figures.",
        ),
    ]


def goodput_json(goodput: Goodput) -> dict[str, Any]:
    return {
        **asdict(goodput),
        "wall_seconds": goodput.wall_seconds,
        "running_seconds": goodput.running_seconds,
        "fraction": goodput.fraction,
        "running_fraction": goodput.running_fraction,
        "fractions": goodput.fractions,
    }
