"""What a checkpoint says of itself, as a value: its fields say what each may hold.

A manifest that is made here is not checked. One that is read is, by ``parse_manifest``, against the
types of these fields: its hash is its maker's own, so it proves no good will.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SkipValidation, TypeAdapter

from lmscale.files.strangers import (
    EXACT,
    Count,
    Finite,
    Flag,
    Instant,
    Number,
    Sha256,
    Text,
    Tree,
    checked,
    one_of,
    quote,
)

VERSION = 2
MASTER = "master"
FROZEN = "frozen"
BUFFER = "buffer"
MAX_ELEMENTS = 2**60
MAX_DIMENSIONS = 64
# Of every dtype that write_file.py stores, as safetensors names it. Not from there: it loads torch.
ITEM_BYTES: Mapping[str, int] = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "C64": 8},
}

# Why a checkpoint was written. One that somebody asked for is kept until somebody removes it.
REGULAR, ASKED, STOP, LAST = REASONS = ("regular", "asked", "stop", "last")


def _check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a tensor that can be: one without elements too has strides, which overflow."""
    if math.prod(max(1, size) for size in shape) >= MAX_ELEMENTS:
        raise ValueError(f"is {quote(shape)}")
    return shape


def _check_writer(writer: dict[str, Any]) -> dict[str, Any]:
    if "time" in writer:
        checked(_TIME, writer["time"], at="time")
    return writer


_TIME = TypeAdapter(Instant)
Shape = Annotated[tuple[Count, ...], Field(max_length=MAX_DIMENSIONS), AfterValidator(_check_shape)]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of fragments, as its writer saw it."""

    __pydantic_config__ = EXACT
    name: Text
    bytes: Count
    sha256: Sha256
    # (parameter's name, offset, elements). manifest_file.py checks them: there are many.
    fragments: SkipValidation[tuple[tuple[str, int, int], ...]]


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """A tensor that no optimizer updates: a frozen parameter, or a buffer."""

    __pydantic_config__ = EXACT
    shape: Shape
    dtype: Annotated[Text, one_of(ITEM_BYTES)]
    kind: Annotated[Text, one_of((FROZEN, BUFFER))]


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """The optimizer's kind, and the updates it has taken, which are fewer than steps when some were
    skipped; None where it does not count them.
    """

    __pydantic_config__ = EXACT
    kind: Text
    step: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A loss that was measured on the weights: of how many known windows, and on what."""

    __pydantic_config__ = EXACT
    windows: Count
    loss: Number
    precision: Text | None = None
    device: Text | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds. Its presence, and its files' hashes, are what makes it one."""

    __pydantic_config__ = EXACT
    step: Count
    parameters: dict[str, Shape]  # of the trained ones
    states: dict[str, tuple[Text, ...]]  # what is stored of each: master, exp_avg, …
    replicated: dict[str, Untrained] = field(default_factory=dict)
    optimizer: OptimizerKind
    loss_scale: dict[str, Finite] | None  # fp16's dynamic scale and its counters
    state: Tree  # ``manifest_file.RunStates``, which their owners check
    identity: Tree  # of the run and its model; compared before anything is loaded
    # World size, ZeRO stage, precision, versions, time: for people.
    written_by: Annotated[Tree, AfterValidator(_check_writer)]
    is_finite: Flag  # every weight and every state was finite
    # ranks/fingerprint.py of all masters; empty: not known
    weights: Annotated[Text, Field(pattern=r"^(?:[0-9a-f]{16})?$")] = ""
    reason: Annotated[Text, one_of(REASONS)] = REGULAR
    rewinds: Count = 0  # that had happened in the run when it was written
    probe: Probe | None = None
    files: tuple[FileEntry, ...]
    version: Count = VERSION

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, trained or frozen."""
        frozen = {n: row.shape for n, row in self.replicated.items() if row.kind == FROZEN}
        return self.parameters | frozen

    def to_bytes(self) -> bytes:
        """The file. It has a hash of itself: a flipped byte here would move the run's place."""
        return _seal(self._text, self.hash).encode()

    def to_json(self) -> dict[str, Any]:
        """What is in the file."""
        return json.loads(self.to_bytes())

    @cached_property
    def hash(self) -> str:
        """The same wherever the same manifest was read; ``replace`` leaves it behind."""
        return _hash_of(self._text)

    @property
    def _text(self) -> str:
        """All but its hash, as ``_render`` has it."""
        tree = {each.name: getattr(self, each.name) for each in fields(self)}
        numbers = {name: number for number, name in enumerate(_names_in_order(tree))}
        tree["files"] = [
            {
                **vars(entry),
                # A name that is none of this checkpoint's is left, for the reader to refuse.
                "fragments": [
                    [numbers.get(name, name) for name, _, _ in entry.fragments],
                    [offset for _, offset, _ in entry.fragments],
                    [count for _, _, count in entry.fragments],
                ],
            }
            for entry in self.files
        ]
        return _render(tree)


def _names_in_order(tree: Mapping[str, Any]) -> list[str]:
    """The names that fragments are numbered by. By code points, as Python compares strings."""
    return [*sorted(tree["parameters"]), *sorted(tree["replicated"])]


def _render(tree: Mapping[str, Any]) -> str:
    """As JSON with sorted keys and no spaces, in ASCII.

    File by file: other threads can run in between.
    """
    rows = []
    for key, value in sorted(tree.items()):
        text = f"[{','.join(map(_dump, value))}]" if key == "files" else _dump(value)
        rows.append(f"{_dump(key)}:{text}")
    return f"{{{','.join(rows)}}}"


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=vars)


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seal(text: str, sha256: str) -> str:
    """A rendered manifest with its hash as the last key."""
    return f'{text[:-1]},"sha256":"{sha256}"}}\n'
