"""What a checkpoint says of itself, as a value, as a file, and with what a run keeps in it.

A manifest that is made here is not checked. One that is read is, by ``parse_manifest``, against the
types of these fields: its hash is its maker's own, so it proves no good will.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, SkipValidation, TypeAdapter

from lmscale.checkpoint.differences import MAX_NAMED
from lmscale.config.training import AVERAGE, ZEROS
from lmscale.errors import CheckpointError, RefusedError
from lmscale.files.redact import printable_name
from lmscale.files.strangers import (
    EXACT,
    Count,
    Finite,
    Flag,
    ImplausibleError,
    Instant,
    Number,
    Sha256,
    Text,
    Tree,
    checked,
    describe_unsafe_name,
    is_count,
    one_of,
    quote,
)

State = TypeVar("State")
VERSION = 2
MASTER = "master"
FROZEN = "frozen"
BUFFER = "buffer"
FACTOR = "factor"  # of Adafactor's running means, by a matrix's rows or columns
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
    # (parameter's name, offset, elements). ``_find_file_lies`` checks them: there are many.
    fragments: SkipValidation[tuple[tuple[str, int, int], ...]]


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """A tensor that all ranks hold alike: a frozen parameter, a buffer, or a factor."""

    __pydantic_config__ = EXACT
    shape: Shape
    dtype: Annotated[Text, one_of(ITEM_BYTES)]
    kind: Annotated[Text, one_of((FROZEN, BUFFER, FACTOR))]


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """What schedule-free AdamW averages by, beside its points y and z (engine/schedule_free.py)."""

    __pydantic_config__ = EXACT
    beta: Number  # of the average in y
    weight_sum: Number
    largest_rate: Number


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """The optimizer's kind, and the updates it has taken, which are fewer than steps when some were
    skipped; None where it does not count them.
    """

    __pydantic_config__ = EXACT
    kind: Text
    step: Count | None = None
    averaging: Averaging | None = None


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
    state: Tree  # ``RunStates``, which their owners check
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
    def has_average(self) -> bool:
        """Whether it holds an average of the weights beside them."""
        is_kept = all(AVERAGE in kinds for kinds in self.states.values())
        return is_kept or self.optimizer.averaging is not None

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, trained or frozen, and of every buffer."""
        others = {n: row.shape for n, row in self.replicated.items() if row.kind != FACTOR}
        return self.parameters | others

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
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_fields_of)


def _fields_of(value: Any) -> dict[str, Any]:
    """A row's keys. One that came with a later lmscale is left out where a run has no use for it:
    the manifest is then byte for byte what it was before.
    """
    return {key: of for key, of in vars(value).items() if (key, of) != ("averaging", None)}


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seal(text: str, sha256: str) -> str:
    """A rendered manifest with its hash as the last key."""
    return f'{text[:-1]},"sha256":"{sha256}"}}\n'


_MANIFEST = TypeAdapter(Manifest)
_STATE_BYTES = {ZEROS: ITEM_BYTES["BOOL"]}  # of other kinds: masters and optimizers' states


def parse_manifest(text: str, path: Path | str) -> Manifest:
    """Read a manifest back. Raises ``CheckpointError`` for anything that is not one, and its
    subclass ``RefusedError`` for one of a newer lmscale: no older one is taken in its place.
    """
    try:
        tree = json.loads(text)
        version, sha256 = tree["version"], tree.pop("sha256", None)
        # One flipped bit makes another version as well: the hash is then that of ours.
        is_ours = version == VERSION or sha256 == _hash_of(_render({**tree, "version": VERSION}))
        if not is_ours and is_count(version) and version > VERSION:
            raise RefusedError(
                f"{path}: written by a newer lmscale (version {version} of the checkpoint format; "
                f"this one reads {VERSION}). Nothing is wrong with it: go on with the lmscale that "
                "wrote it, whose version is in the run's code.json, or with a newer one."
            )
        if version != VERSION and not is_ours:
            raise CheckpointError(
                f"{path}: version {quote(version)} of the checkpoint format; this lmscale "
                f"reads {VERSION}."
            )
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
        name: (math.prod(shape), sum(map(_state_bytes, manifest.states.get(name, ()))))
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


def _state_bytes(kind: str) -> int:
    return _STATE_BYTES.get(kind, ITEM_BYTES["F32"])


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
        raise _refuse(where, error.problems) from None
