"""A plan of a run in words and numbers: rows for a page and for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from lmscale.plan.failures import DAY, HOUR
from lmscale.plan.run import RunPlan
from lmscale.plan.speed import Step


def summarize(run: RunPlan, step: Step) -> Iterator[tuple[str, str]]:
    """A run in a table of a dozen rows."""
    yield "parameters", f"{run.parameters:,}"
    yield "tokens", f"{run.tokens:,}, {show_number(run.tokens_per_parameter)} a parameter"
    yield (
        "speed",
        f"{step.tokens_per_second:,.0f} tokens/s, "
        f"{step.tokens_per_second_per_device:,.0f} a device",
    )
    if step.mfu_dense is not None and step.mfu_causal is not None:
        yield "MFU", f"{100 * step.mfu_dense:.1f} % dense, {100 * step.mfu_causal:.1f} % causal"
    low, half, high = map(show_seconds, run.simulated.wall_seconds)
    yield "time", f"{half} ({low} to {high} in eight of ten), failures included"
    yield "goodput", f"{100 * run.simulated.goodput:.1f} %"
    yield "device hours", show_number(run.device_hours)
    if run.cost is not None:
        yield "cost", show_number(run.cost)
    if run.energy_kwh is not None:
        yield "energy", f"{show_number(run.energy_kwh)} kWh"
    saves = run.saves
    yield (
        "checkpoint",
        f"{show_bytes(saves.checkpoint.bytes)} each, {show_bytes(saves.checkpoint.storage_bytes)} "
        f"for the {saves.checkpoint.kept} that are there at once",
    )
    interval = show_seconds(saves.every_steps * run.step_seconds)
    told = f"every {saves.every_steps:,} steps ({interval}); "
    told += f"{_show_steps(saves.best_steps, run.steps)} lose least"
    if saves.advised_steps > 1.1 * saves.best_steps:
        told += f", {_show_steps(saves.advised_steps, run.steps)} are about as good"
    yield "saves", told


def list_goodput(run: RunPlan) -> Iterator[tuple[str, str]]:
    yield "goodput", f"{100 * run.simulated.goodput:.1f} %"
    yield "a failure", f"every {run.saves.mtbf_seconds / HOUR:.3g} h"
    for cause, share in run.simulated.mean.fractions.items():
        if share >= 0.0005:
            yield cause, f"{100 * share:.1f} %"


def list_losses(run: RunPlan) -> Iterator[tuple[str, str, str, str]]:
    yield "law", "nats per token", "measured on", "here"
    for each in run.losses:
        said = "; ".join(each.doubts) or "within its range"
        nats = "" if each.nats_per_token is None else f"{each.nats_per_token:.3f}"
        yield each.law, nats, each.measured.text, said


def list_sources(run: RunPlan) -> Iterator[tuple[str, str, str, str, str]]:
    yield "source", "share", "tokens", "epochs", "worth of them"
    for source in run.sources:
        epochs = source.why_unknown if source.epochs is None else f"{source.epochs:.3g}"
        worth = f"{100 * source.effective_tokens / source.trained_tokens:.0f} %"
        share, tokens = f"{100 * source.share:.1f} %", f"{source.trained_tokens:,.0f}"
        yield source.name, share, tokens, epochs, worth if source.epochs is not None else ""


def _show_steps(steps: float, most: int) -> str:
    return "the fewest" if steps >= most else f"{max(1, round(steps)):,}"


def show_number(value: float) -> str:
    """Three digits, without a power of 10."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show_bytes(count: float) -> str:
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB")):
        if count >= 10**power or unit == "MB":
            return f"{show_number(count / 10**power)} {unit}"
    return ""


def show_seconds(seconds: float) -> str:
    units = ((2 * DAY, DAY, "days"), (2 * HOUR, HOUR, "h"), (120.0, 60.0, "min"))
    units += ((1.0, 1.0, "s"), (1e-3, 1e-3, "ms"))
    for least, unit, name in units:
        if seconds >= least:
            return f"{show_number(seconds / unit)} {name}"
    return f"{1e6 * seconds:.3g} µs" if seconds else "0"
