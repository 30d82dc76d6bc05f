"""Whether a checkpoint is of this very run, setting by setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmscale.files.redact import printable_name

MAX_NAMED = 8  # told one by one


def describe_differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, where: str
) -> list[str]:
    """Every setting by which a checkpoint is of another run."""
    before, after = _flatten(saved), _flatten(now)
    differences = [
        f"{where}: {printable_name(key)} was {before.get(key)!r} when it was written and is "
        f"{after.get(key)!r} now."
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    more = len(differences) - MAX_NAMED
    return differences[:MAX_NAMED] + ([f"{where}: and {more} more."] if more > 0 else [])


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
