"""Whether a checkpoint is of this very run, setting by setting, and of this model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmscale.errors import CheckpointError
from lmscale.files.redact import printable_name

MAX_NAMED = 8  # told one by one


def describe_differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, where: str
) -> list[str]:
    """Every setting by which a checkpoint is of another run."""
    before, after = _flatten(saved), _flatten(now)
    return _shorten(
        f"{where}: ",
        [
            f"{printable_name(key)} was {before.get(key)!r} when it was written and is "
            f"{after.get(key)!r} now."
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ],
        end=".",
    )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def check_same_tensors(
    stored: Mapping[str, str], here: Mapping[str, str], *, it: str, where: str, advice: str
) -> None:
    """Raise ``CheckpointError`` with the tensors by which two models differ.

    Both map a tensor's name to what it is; ``it`` is what the checkpoint is called after ``where``.
    """
    differences = [f"{name} is not in {it}" for name in here if name not in stored]
    differences += [f"{name} is only in {it}" for name in stored if name not in here]
    differences += [
        f"{name} is {stored[name]} in {it} and {described} in this model"
        for name, described in here.items()
        if name in stored and stored[name] != described
    ]
    if differences:
        heading = f"{where} is a checkpoint of another model:"
        raise CheckpointError([heading, *_shorten("  ", differences), advice])


def _shorten(prefix: str, lines: Sequence[str], end: str = "") -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - MAX_NAMED
    rest = [f"{prefix}and {more} more{end}"] if more > 0 else []
    return [prefix + line for line in lines[:MAX_NAMED]] + rest
