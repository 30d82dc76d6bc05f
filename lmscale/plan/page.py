"""A plan as one page of HTML: pictures as SVG, no script, nothing from elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lmscale.plan.pictures import (
    COLORS,
    GRAY,
    Axis,
    Line,
    Part,
    Span,
    render_bar,
    render_chart,
    render_timeline,
)
from lmscale.plan.run import RunPlan, Scale
from lmscale.plan.speed import Step
from lmscale.plan.words import (
    list_goodput,
    list_losses,
    list_sources,
    show_seconds,
    summarize,
)

MADE_BY = "<!-- lmscale plan -->"
_STYLE = """
body { font-family: sans-serif; color: #222; max-width: 800px; margin: 24px auto; padding: 0 16px }
h1 { font-size: 22px } h2 { font-size: 17px; margin-top: 32px }
table { border-collapse: collapse; font-size: 14px }
td { padding: 3px 14px 3px 0; text-align: left; vertical-align: top }
svg { max-width: 100%; height: auto }
"""
_SPENT_COLORS = {
    "products": COLORS[0],
    "attention": COLORS[4],
    "memory": COLORS[2],
    "launches": COLORS[3],
    "links": COLORS[1],
}


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is shown; None of what is not known."""

    title: str
    machine: str
    memory: Mapping[str, int] | None
    """Component → bytes of a rank, in the order of the bar."""
    memory_limit: int | None
    step: Step
    run: RunPlan
    scales: Sequence[Scale]
    ladder: str | None = None
    """The picture of a ladder's fit, as SVG."""


def render_page(page: Page) -> str:
    """The text of a file that a browser shows."""
    parts = [
        f"<!DOCTYPE html>\n{MADE_BY}",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(page.title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(page.title)}</h1><p>{escape(page.machine)}</p>",
        _table(summarize(page.run, page.step)),
    ]
    if page.run.doubts:
        items = "".join(f"<li>{escape(doubt)}</li>" for doubt in page.run.doubts)
        parts.append(f"<h2>What to look at</h2><ul>{items}</ul>")
    if page.memory is not None:
        parts += ["<h2>Memory of a rank</h2>", draw_memory(page.memory, page.memory_limit)]
    parts += ["<h2>One step</h2>", draw_step(page.step)]
    parts += ["<h2>Failures</h2>", _table(list_goodput(page.run)), draw_scales(page.scales)]
    if page.run.losses:
        parts += ["<h2>Loss to expect</h2>", _table(list_losses(page.run))]
    if page.run.sources:
        parts += ["<h2>Text</h2>", _table(list_sources(page.run))]
    if page.ladder is not None:
        parts += ["<h2>Ladder</h2>", page.ladder]
    return "\n".join([*parts, "</body></html>\n"])


def draw_memory(memory: Mapping[str, int], limit: int | None) -> str:
    parts = [
        Part(
            name=name.replace("_", " "),
            amount=amount,
            color=COLORS[number % len(COLORS)],
            said=f"{amount / 2**30:.2f} GiB",
        )
        for number, (name, amount) in enumerate(memory.items())
        if amount
    ]
    total = sum(memory.values())
    title = f"{total / 2**30:.1f} GiB"
    if limit is None:
        return render_bar(title, parts, limit=0, said_limit="")
    said = f"{limit / 2**30:.1f} GiB"
    fits = "fits" if total <= limit else "does not fit"
    return render_bar(f"{title} of {said}: {fits}", parts, limit=limit, said_limit=said)


def draw_step(step: Step) -> str:
    """The phases one behind the other, what each is spent on, and collectives beside it."""
    spans, begin = [], 0.0
    shades = {"forward": "#7d96b8", "backward": "#5b7396", "step": "#3d5170"}
    for phase in step.phases:
        end = begin + phase.seconds
        color = shades.get(phase.name, GRAY)
        spans.append(Span(row="phase", name=phase.name, begin=begin, end=end, color=color))
        at = begin
        for name, seconds in phase.spent.items():
            color = _SPENT_COLORS.get(name, GRAY)
            span = Span(row="spent on", name=name, begin=at, end=at + seconds, color=color)
            spans.append(span)
            at += seconds
        if phase.name == "backward" and step.hidden_seconds:
            first = max(0.0, end - step.hidden_seconds)
            name = "links, beside it"
            spans.append(Span(row="beside it", name=name, begin=first, end=end, color=COLORS[1]))
        begin = end
    spans = [span for span in spans if span.end > span.begin]
    title = f"{show_seconds(step.seconds)} a step, bound by {step.bound_by}"
    return render_timeline(title, spans, form=show_seconds)


def draw_scales(scales: Sequence[Scale]) -> str:
    x = Axis(
        title="devices",
        low=min(scale.devices for scale in scales),
        high=max(2, *(scale.devices for scale in scales)),
        is_log=True,
        form=lambda value: f"{value:,.0f}",
    )
    lowest = min(min(scale.goodput, scale.goodput_best) for scale in scales)
    low = max(0.0, int(lowest * 10 - 0.5) / 10)
    y = Axis(title="goodput", low=low, high=1.0, form=lambda value: f"{100 * value:.0f} %")
    return render_chart(
        "30 days of training, by the number of devices",
        [
            Line(
                name="saves as configured",
                points=[(scale.devices, scale.goodput) for scale in scales],
                color=COLORS[0],
                has_dots=True,
            ),
            Line(
                name="saves as advised",
                points=[(scale.devices, scale.goodput_best) for scale in scales],
                color=COLORS[2],
                is_dashed=True,
                has_dots=True,
            ),
        ],
        x,
        y,
        height=320,
    )


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
