"""What a manifest says must be possible before anything is read by it: its hash is its maker's own,
so it proves no good will.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lmscale.files.file_names import describe_unsafe_name
from lmscale.files.redact import printable_name
from lmscale.files.strangers import MAX_COUNT, is_count, is_sha256, quote

if TYPE_CHECKING:
    from lmscale.checkpoint.manifest import FileEntry, Manifest

MAX_ELEMENTS = 2**60
MAX_DIMENSIONS = 64
MAX_DEPTH = 32  # of lists and mappings in each other; what is saved has some six
# Of every dtype that write_file.py stores, as safetensors names it. Not from there: it loads torch.
ITEM_BYTES: Mapping[str, int] = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "C64": 8},
}
_STATE_BYTES = ITEM_BYTES["F32"]  # masters and optimizers' states
_KINDS = ("frozen", "buffer")
_LAST_INSTANT = 250_000_000_000  # in the year 9892: datetime ends with 9999
_WEIGHTS = re.compile(r"(?:[0-9a-f]{16})?")
_Check = Callable[[Any], bool]


def find_lies(manifest: Manifest) -> list[str]:
    """What no checkpoint can say: values of another kind, files elsewhere, pieces of nothing, or
    more of them than their file has bytes.

    Whether the pieces cover every tensor is ``find_gaps``.
    """
    tree = {each.name: getattr(manifest, each.name) for each in fields(manifest)}
    problems = [*_find_odd_values(tree)]
    if not _is_tree(manifest.replicated):
        return problems
    sizes: dict[str, tuple[int, int]] = {}  # name → elements, bytes of each
    for name, shape, item_bytes in _stored_tensors(manifest):
        if _is_shape(shape):
            sizes[name] = math.prod(shape), item_bytes
        else:
            problems.append(f"{printable_name(name)} has the shape {quote(tuple(shape))}")
    problems += _find_tensor_lies(manifest)
    for entry in manifest.files:
        problems += _find_file_lies(entry, sizes)
    counts = Counter(entry.name for entry in manifest.files if _is_text(entry.name))
    twice = sorted(name for name, count in counts.items() if count > 1)
    return problems + [f"{printable_name(name)} is named twice" for name in twice]


def _find_odd_values(tree: Mapping[str, Any]) -> Iterator[str]:
    for path, is_sound in _READ.items():
        parent: Any = tree
        *folders, key = path.split(".")
        for folder in folders:
            parent = parent.get(folder) if _is_tree(parent) else None
        if not _is_tree(parent):  # told by its own row, or there is none
            continue
        if key not in parent and path in _NEEDED:
            yield f"{path} is missing"
        if key in parent and not is_sound(parent[key]):
            yield f"{path} is {quote(parent[key])}"
    for name in sorted(tree.keys() - {"parameters", "states", "files"}):
        if not _is_tame(tree[name]):
            yield f"{name} is nested too deeply, or holds a number that nothing has"


def _stored_tensors(manifest: Manifest) -> Iterator[tuple[str, Sequence[Any], int]]:
    """(name, shape, bytes of each element), of those whose kind can be told."""
    for name, shape in manifest.parameters.items():
        yield name, shape, _STATE_BYTES * len(manifest.states.get(name, ()))
    for name, row in manifest.replicated.items():
        if _is_row(row):
            yield name, row["shape"], ITEM_BYTES[row["dtype"]]


def _find_tensor_lies(manifest: Manifest) -> Iterator[str]:
    if manifest.parameters.keys() != manifest.states.keys():
        yield "parameters and states are not of the same tensors"
    for name in sorted(manifest.parameters.keys() & manifest.replicated.keys()):
        yield f"{printable_name(name)} is trained and not trained"
    for name, kinds in manifest.states.items():
        if "master" not in kinds or not all(map(_is_text, kinds)):
            yield f"{printable_name(name)} has the states {quote(kinds)}"
    for name, row in manifest.replicated.items():
        if not _is_row(row):
            yield f"{printable_name(name)} is described as {quote(row)}"


def _find_file_lies(entry: FileEntry, sizes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    unsafe = describe_unsafe_name(entry.name)
    if unsafe is not None:
        yield unsafe
    name = printable_name(str(entry.name))
    if not is_count(entry.bytes):
        yield f"{name} has {quote(entry.bytes)} bytes"
    if not is_sha256(entry.sha256):
        yield f"{name} has the sha256 {quote(entry.sha256)}"
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
    if is_count(entry.bytes) and needed > entry.bytes:
        yield f"{name}: its pieces need {needed} bytes, and it has {entry.bytes}"


def _is_shape(shape: Sequence[Any]) -> bool:
    """Whether a tensor can have it; one without elements too has strides, which overflow."""
    if len(shape) > MAX_DIMENSIONS or not all(map(is_count, shape)):
        return False
    return math.prod(max(1, size) for size in shape) < MAX_ELEMENTS


def _is_tame(value: Any, depth: int = 0) -> bool:
    """Whether it can be walked through and reckoned with."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list | tuple):
        return depth < MAX_DEPTH and all(_is_tame(each, depth + 1) for each in value)
    return not isinstance(value, int) or abs(value) < MAX_COUNT


def _is_tree(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_instant(value: Any) -> bool:
    return _is_number(value) and 0 <= value < _LAST_INSTANT


def _is_weights_hash(value: Any) -> bool:
    return _is_text(value) and _WEIGHTS.fullmatch(value) is not None


def _is_row(value: Any) -> bool:
    """Of ``replicated``."""
    return (
        _is_tree(value)
        and isinstance(value.get("shape"), list)
        and _is_text(value.get("dtype"))
        and value["dtype"] in ITEM_BYTES
        and value.get("kind") in _KINDS
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_step(value: Any) -> bool:
    """The guard's figures of one."""
    return _is_tree(value) and all(is_count(value.get(k)) for k in ("step", "first_n", "samples"))


def _is_segment(value: Any) -> bool:
    """Of the stream: a mixture from a sample on."""
    return (
        _is_tree(value)
        and is_count(value.get("start"))
        and _of_each_name(is_count)(value.get("quotas"))
        and _of_each_name(is_count)(value.get("base", {}))
        and _or_none(is_count)(value.get("key"))
        and is_count(value.get("offset", 0))
    )


def _or_none(is_sound: _Check) -> _Check:
    return lambda value: value is None or is_sound(value)


def _of_each(is_sound: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(map(is_sound, value))


def _of_each_name(is_sound: _Check) -> _Check:
    return lambda value: _is_tree(value) and all(map(is_sound, value.values()))


# All that is read by its key, here or where a run goes on. What is only compared or shown is free.
_READ: Mapping[str, _Check] = {
    "step": is_count,
    "replicated": _is_tree,
    "optimizer": _is_tree,
    "optimizer.kind": _is_text,
    "optimizer.step": _or_none(is_count),
    "loss_scale": _or_none(_of_each_name(_is_finite)),
    "state": _is_tree,
    "state.progress": _of_each_name(is_count),
    "state.stream": _is_tree,
    "state.stream.seed": is_count,
    "state.stream.n": is_count,
    "state.stream.segments": _of_each(_is_segment),
    "state.guard": _or_none(_is_tree),
    "state.guard.window": _of_each(_is_pair),
    "state.guard.bad": _of_each(_is_step),
    "state.guard.recent": _of_each(_is_step),
    "state.guard.recent_bad": _of_each(is_count),
    "state.guard.searching": _or_none(_is_step),
    "state.guard.nonfinite_steps": is_count,
    "state.guard.spike_steps": is_count,
    "identity": _is_tree,
    "written_by": _is_tree,
    "written_by.time": _is_instant,
    "is_finite": _is_bool,
    "weights": _is_weights_hash,
    "rewinds": is_count,
    "probe": _or_none(_is_tree),
    "probe.loss": _is_number,
    "probe.windows": is_count,
}
_NEEDED = {"probe.loss", "probe.windows"}
