"""A summary of some profiled steps as a page of Markdown, and as a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from lmscale.files.printing import align_rows, count_of, render_bytes
from lmscale.train.profile_summary import AllocationRow, Summary

MAX_ROWS, MAX_MODULES = 15, 40  # of a table
MAX_NAME = 72  # characters of a kernel's name: templates fill pages
MAX_LINES = 4  # of each kind, on the terminal


def render_lines(summary: Summary) -> list[str]:
    """The few lines for a terminal."""
    step = summary.wall_seconds / summary.steps
    total = max(summary.wall_seconds, 1e-12)
    busy = summary.busy_seconds / total
    whose = "the device is busy" if summary.has_kernels else "the CPU is in torch's operations"
    lines = [f"{summary.title}: {1e3 * step:,.1f} ms a step, {whose} for {busy:.0%} of it"]
    phases = sorted(summary.phases, key=lambda row: -row.wall_seconds)[:MAX_LINES]
    lines.append("phases: " + ", ".join(f"{r.name} {r.wall_seconds / total:.0%}" for r in phases))
    seen = max(sum(row.seconds for row in summary.modules), 1e-12)
    modules = summary.modules[:MAX_LINES]
    lines.append("modules: " + ", ".join(f"{r.name} {r.seconds / seen:.0%}" for r in modules))
    kernels = summary.kernels[:MAX_LINES]
    named = (f"{_short(row.name, 40)} {row.seconds / seen:.0%}" for row in kernels)
    lines.append(f"{_kernels_of(summary)}: " + ", ".join(named))
    if summary.allocations:
        first = summary.allocations[0]
        lines.append(
            f"memory: up to {render_bytes(summary.grown_bytes)} more than before; the largest "
            f"allocation has {render_bytes(first.bytes)} ({_place_of(first)})"
        )
    return lines


def render_page(summary: Summary) -> str:
    """The page, in Markdown that is read as it stands."""
    steps, total = summary.steps, max(summary.wall_seconds, 1e-12)
    seen = max(sum(row.seconds for row in summary.modules), 1e-12)
    busy = "on the device" if summary.has_kernels else "in operations"

    def ms(seconds: float) -> str:
        return f"{1e3 * seconds / steps:,.3f}"

    phases = [
        (row.name, ms(row.wall_seconds), f"{row.wall_seconds / total:.1%}", ms(row.busy_seconds))
        for row in summary.phases
    ]
    modules = [
        (
            row.name,
            f"{row.calls / steps:g}",
            ms(row.forward_seconds),
            ms(row.backward_seconds),
            f"{row.seconds / seen:.1%}",
        )
        for row in summary.modules[:MAX_MODULES]
    ]
    kernels = [
        (_short(row.name), f"{row.calls / steps:g}", ms(row.seconds), f"{row.seconds / seen:.1%}")
        for row in summary.kernels[:MAX_ROWS]
    ]
    allocations = [
        (
            render_bytes(row.bytes),
            f"{row.count / steps:g}",
            _short(row.operation),
            row.module,
            row.phase,
        )
        for row in summary.allocations[:MAX_ROWS]
    ]
    by_kernel = f"by {_kernels_of(summary).removesuffix('s')}"
    lines = [
        f"# {summary.title}",
        "",
        f"{count_of(steps, 'step')}; all times are milliseconds a step, and were taken under the "
        "profiler, which slows the CPU down.",
        f"A step took {ms(summary.wall_seconds)} ms, {ms(summary.busy_seconds)} of them {busy}.",
        *_table("Time by phase", ("phase", "ms", "share", f"ms {busy}"), phases),
        *_table("Time by module", ("module", "calls", "forward", "backward", "share"), modules),
        *_table(f"Time {by_kernel}", ("name", "calls", "ms", "share"), kernels),
    ]
    if allocations:
        lines += [
            *_table(
                "The largest allocations",
                ("bytes", "a step", "operation", "module", "phase"),
                allocations,
                left=(2, 3, 4),
            ),
            "",
            f"At most {render_bytes(summary.grown_bytes)} more were in use than before.",
        ]
    return "\n".join([*lines, ""])


def _table(
    title: str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[int] = (0,),
) -> list[str]:
    """A heading and aligned rows, indented as Markdown's code is."""
    aligned = align_rows([names, *rows], left=left).splitlines()
    return ["", f"## {title}", "", *(f"    {line}" for line in aligned)]


def _kernels_of(summary: Summary) -> str:
    return "kernels" if summary.has_kernels else "operations"


def _place_of(row: AllocationRow) -> str:
    return ", ".join(filter(None, (_short(row.operation, 40), row.module, row.phase)))


def _short(name: str, limit: int = MAX_NAME) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
