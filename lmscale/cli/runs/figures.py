"""The figures of ``metrics.jsonl`` with their units, by their names (docs/formats.md)."""

from __future__ import annotations

import re

from lmscale.files.printing import render_bytes

_UNITS = (
    (re.compile(r"_seconds$|/seconds$"), "s"),
    (re.compile(r"/gigabytes_per_second$"), "GB/s"),
    (re.compile(r"/targets_per_second$"), "tokens/s"),
    (re.compile(r"/(positions|tokens)_per_second$"), "positions/s"),  # the latter of old lines
    (re.compile(r"/bits_per_byte$"), "bits/byte"),
    (re.compile(r"/tokens$"), "tokens"),
    (re.compile(r"_steps$"), "steps"),
    (re.compile(r"_samples$"), "samples"),
    (re.compile(r"_tflops$"), "TFLOP/s"),
)
_BYTES = re.compile(r"[_/]bytes$")
_SHARE = re.compile(r"_fraction$|goodput$|/mfu_\w+$|accuracy$|/f1_\w+$|^mixture/.*/share$")


def render_figure(name: str, value: float | None, loss_unit: str) -> tuple[str, str]:
    """A figure of ``metrics.jsonl`` and its unit; "" of what has none, or says it in its name."""
    if value is None:
        return "-", ""
    if _BYTES.search(name):
        number, unit = render_bytes(int(value)).split()
        return number, unit
    if _SHARE.search(name):
        return f"{100 * value:.4g}", "%"
    if name.endswith("/loss"):
        return f"{value:.6g}", loss_unit
    unit = next((unit for pattern, unit in _UNITS if pattern.search(name)), "")
    return (f"{value:,}" if isinstance(value, int) else f"{value:.6g}"), unit
