"""What a manifest says must be possible before anything is read by it: its hash is its maker's own,
so it proves no good will.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lmscale.config.redact import printable_name
from lmscale.runtime.file_names import describe_unsafe_name

if TYPE_CHECKING:
    from lmscale.checkpoint.layout import FileEntry, Manifest

MAX_ELEMENTS = 2**60
_SHA256 = re.compile(r"[0-9a-f]{64}")


def find_lies(manifest: Manifest) -> list[str]:
    """What no checkpoint can say: files elsewhere, counts that are none, pieces of nothing.

    Whether the pieces cover every tensor is ``find_gaps``.
    """
    numels: dict[str, int] = {}
    problems = []
    if not _is_count(manifest.step):
        problems.append(f"step {manifest.step!r} is none")
    shapes = {**manifest.parameters, **{n: r["shape"] for n, r in manifest.replicated.items()}}
    for name, shape in shapes.items():
        if all(map(_is_count, shape)) and math.prod(shape) < MAX_ELEMENTS:
            numels[name] = math.prod(shape)
        else:
            problems.append(f"{printable_name(name)} has the shape {tuple(shape)}")
    for entry in manifest.files:
        problems += _find_file_lies(entry, numels)
    names = [entry.name for entry in manifest.files]
    problems += [
        f"{printable_name(name)} is named twice"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    return problems


def _find_file_lies(entry: FileEntry, numels: Mapping[str, int]) -> Iterator[str]:
    name, unsafe = printable_name(entry.name), describe_unsafe_name(entry.name)
    if unsafe is not None:
        yield unsafe
    if not _is_count(entry.bytes):
        yield f"{name} has {entry.bytes!r} bytes"
    if not isinstance(entry.sha256, str) or not _SHA256.fullmatch(entry.sha256):
        yield f"{name} has the sha256 {entry.sha256!r}"
    for parameter, offset, count in entry.fragments:
        numel = numels.get(parameter, -1)
        # In a large run there are hundreds of thousands: one comparison for each that is sound.
        if type(offset) is type(count) is int and 0 <= offset <= offset + count <= numel:
            continue
        where = f"{name}: a piece of {parameter!r}, {count!r} elements from {offset!r} on,"
        if numel < 0:
            yield f"{where} is of no tensor of this checkpoint"
        else:
            yield f"{where} does not lie within its {numel} elements"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
