"""What a manifest says must be possible before anything is read by it: its hash is its maker's own,
so it proves no good will.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

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
            problems.append(f"{name} has the shape {tuple(shape)}")
    for entry in manifest.files:
        problems += _find_file_lies(entry, numels)
    names = [entry.name for entry in manifest.files]
    problems += [
        f"{name} is named twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    return problems


def _find_file_lies(entry: FileEntry, numels: Mapping[str, int]) -> Iterator[str]:
    unsafe = describe_unsafe_name(entry.name)
    if unsafe is not None:
        yield unsafe
    if not _is_count(entry.bytes):
        yield f"{entry.name} has {entry.bytes!r} bytes"
    if not isinstance(entry.sha256, str) or not _SHA256.fullmatch(entry.sha256):
        yield f"{entry.name} has the sha256 {entry.sha256!r}"
    for parameter, offset, count in entry.fragments:
        # A large run has hundreds of thousands, of which none is a lie.
        if type(offset) is type(count) is int and 0 <= offset <= offset + count <= numels.get(
            parameter, -1
        ):
            continue
        where = f"{entry.name}: a piece of {parameter!r}, {count!r} elements from {offset!r} on,"
        if parameter not in numels:
            yield f"{where} is of no tensor of this checkpoint"
        elif not _is_count(offset) or not _is_count(count) or offset + count > numels[parameter]:
            yield f"{where} does not lie within its {numels[parameter]} elements"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
