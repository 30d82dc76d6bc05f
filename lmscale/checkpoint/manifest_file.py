"""Manifests as they are read, and what a run keeps in them: nothing is believed before it was
checked.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from lmscale.checkpoint.layout import MAX_NAMED
from lmscale.checkpoint.manifest import (
    ITEM_BYTES,
    MASTER,
    VERSION,
    FileEntry,
    Manifest,
    _hash_of,
    _names_in_order,
    _render,
    _seal,
)
from lmscale.errors import CheckpointError
from lmscale.files.redact import printable_name
from lmscale.files.strangers import ImplausibleError, checked, describe_unsafe_name, quote

State = TypeVar("State")
_MANIFEST = TypeAdapter(Manifest)
_STATE_BYTES = ITEM_BYTES["F32"]  # masters and optimizers' states


def parse_manifest(text: str, path: Path | str) -> Manifest:
    """Read a manifest back. Raises ``CheckpointError`` for anything that is not one."""
    try:
        tree = json.loads(text)
        if tree["version"] != VERSION:
            raise CheckpointError(
                f"{path}: version {quote(tree['version'])} of the checkpoint format; this lmscale "
                f"reads {VERSION}."
            )
        sha256 = tree.pop("sha256")
        if not _has_hash(text, tree, sha256):
            raise CheckpointError(f"{path}: does not match its own hash; it is damaged.")
        names = _names_in_order(tree)
        for row in tree["files"]:
            row["fragments"] = _name_fragments(row["fragments"], names)
        manifest = checked(_MANIFEST, tree)
        lies = _find_lies(manifest)
    except ImplausibleError as error:
        raise _refuse(path, error.problems) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's manifest: {error!r}.") from None
    if lies:
        raise _refuse(path, lies)
    vars(manifest)["hash"] = sha256
    return manifest


def _refuse(path: Path | str, problems: Sequence[str]) -> CheckpointError:
    return CheckpointError([f"{path}: refused: {problem}." for problem in problems[:MAX_NAMED]])


def _name_fragments(
    columns: Sequence[Sequence[Any]], names: Sequence[str]
) -> tuple[tuple[str, int, int], ...]:
    """With the parameters' names. What is no number of one gets a name that none has: a lie."""
    numbers, offsets, counts = columns
    name_of: dict[Any, str] = dict(enumerate(names))
    named = [name_of[n] if type(n) is int and n in name_of else f"number {n!r}" for n in numbers]
    return tuple(zip(named, offsets, counts, strict=True))


def _find_lies(manifest: Manifest) -> list[str]:
    """What the fields' own types do not tell: files elsewhere, pieces of nothing, or more of them
    than their file has bytes. Whether the pieces cover every tensor is ``find_gaps``.
    """
    problems: list[str] = []
    if manifest.parameters.keys() != manifest.states.keys():
        problems.append("parameters and states are not of the same tensors")
    for name in sorted(manifest.parameters.keys() & manifest.replicated.keys()):
        problems.append(f"{printable_name(name)} is trained and not trained")
    for name, kinds in manifest.states.items():
        if MASTER not in kinds:
            problems.append(f"{printable_name(name)} has the states {quote(kinds)}")
    sizes = {
        name: (math.prod(shape), _STATE_BYTES * len(manifest.states.get(name, ())))
        for name, shape in manifest.parameters.items()
    } | {
        name: (math.prod(row.shape), ITEM_BYTES[row.dtype])
        for name, row in manifest.replicated.items()
    }
    for entry in manifest.files:
        problems += _find_file_lies(entry, sizes)
    counts = Counter(entry.name for entry in manifest.files)
    twice = sorted(name for name, count in counts.items() if count > 1)
    return problems + [f"{printable_name(name)} is named twice" for name in twice]


def _find_file_lies(entry: FileEntry, sizes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """``sizes``: a tensor's elements, and the bytes that are stored of each."""
    unsafe = describe_unsafe_name(entry.name)
    if unsafe is not None:
        yield unsafe
    name = printable_name(entry.name)
    needed, unknown = 0, (-1, 0)
    for parameter, offset, count in entry.fragments:
        numel, item_bytes = sizes.get(parameter, unknown)
        # In a large run there are hundreds of thousands: one comparison for each that is sound.
        if type(offset) is type(count) is int and 0 <= offset <= offset + count <= numel:
            needed += count * item_bytes
            continue
        where = f"{name}: a piece of {parameter!r}, {quote(count)} elements from {quote(offset)} on"
        if numel < 0:
            yield f"{where}, is of no tensor of this checkpoint"
        else:
            yield f"{where}, does not lie within its {numel} elements"
    if needed > entry.bytes:
        yield f"{name}: its pieces need {needed} bytes, and it has {entry.bytes}"


def _has_hash(text: str, tree: Mapping[str, Any], sha256: Any) -> bool:
    """Whether that is the hash of ``tree``, which is read from ``text`` but for the hash."""
    # As it was written it need not be rendered again: that takes longer than all the rest.
    unsealed = f"{text[: len(text) - len(_seal('}', '0' * 64)) + 1]}}}"
    if isinstance(sha256, str) and text == _seal(unsealed, sha256) and _hash_of(unsealed) == sha256:
        return True
    return sha256 == _hash_of(_render(tree))


RunStates = Mapping[str, Callable[[], dict[str, Any]]]
"""Key in a manifest's ``state`` (progress, stream, guard, initial) → what gives the value that its
owner keeps now, as ``read_state`` reads it back: small. A saver knows nothing else of them.
"""


def read_state(
    manifest: Manifest, name: str, kind: TypeAdapter[State], *, where: str
) -> State | None:
    """What the owner of ``name`` has kept; None where it has kept nothing.

    Raises ``CheckpointError`` for what no value of that kind says; ``where`` names the checkpoint.
    """
    if manifest.state.get(name) is None:
        return None
    try:
        return checked(kind, manifest.state[name], at=f"state.{name}")
    except ImplausibleError as error:
        problems = [f"{where}: refused: {problem}." for problem in error.problems]
        raise CheckpointError(problems[:MAX_NAMED]) from None
