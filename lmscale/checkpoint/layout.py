"""The layout on disk: fragments of flattened tensors, and the manifest that makes them a
checkpoint.

::

    checkpoints/step-000001000/
        rank-00000.safetensors    1-D tensors named "<parameter>:<kind>:<offset>"
        rank-00001.safetensors    (under Slurm rank-00001.4711.0.safetensors: job and restart)
        manifest.json             written last; a folder without it is not a checkpoint

``kind`` is ``master`` (the fp32 weight) or one of the optimizer's states, fp32 too; or, in its own
dtype, ``frozen`` (a parameter that is not trained) or ``buffer``. ``offset`` counts elements of the
flattened parameter. Which rank wrote what is of no meaning to a reader.

In the manifest's JSON a file's fragments are three lists of equal length: [numbers, offsets,
elements]. A number is the parameter's in the list of the names in ``parameters``, sorted by their
characters' code points, followed by those in ``replicated``, sorted likewise. At 512 ranks there
are hundreds of thousands of fragments, and the training holds still while the interpreter reads
them: as rows with names it took eight times as long. docs/formats.md tells the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from lmscale.checkpoint.plausible import find_lies
from lmscale.config.run_files import STEP_FOLDER
from lmscale.errors import CheckpointError
from lmscale.runtime.lease import LOCAL
from lmscale.runtime.strangers import quote

VERSION = 2
MANIFEST = "manifest.json"
MAX_NAMED = 8  # problems told one by one
MASTER = "master"
FROZEN = "frozen"
BUFFER = "buffer"
# Why a checkpoint was written. One that somebody asked for is kept until somebody removes it.
REGULAR, ASKED, STOP, LAST = REASONS = ("regular", "asked", "stop", "last")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of fragments, as its writer saw it."""

    name: str
    bytes: int
    sha256: str
    fragments: tuple[tuple[str, int, int], ...]  # (parameter's name, offset, elements)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds. Its presence, and its files' hashes, are what makes it one."""

    step: int
    parameters: dict[str, tuple[int, ...]]  # of the trained ones: name → shape
    states: dict[str, tuple[str, ...]]  # what is stored of each: master, exp_avg, …
    # Frozen parameters and buffers: name → {"shape": [2, 3], "dtype": "F32", "kind": "frozen"}
    replicated: dict[str, dict[str, Any]] = field(default_factory=dict)
    optimizer: dict[str, Any]  # {"kind": "adamw", "step": updates taken, without skipped ones}
    loss_scale: dict[str, Any] | None  # fp16's dynamic scale and its counters
    state: dict[str, Any]  # the loop's own: progress, stream, the guard's figures
    identity: dict[str, Any]  # of the run and its model; compared before anything is loaded
    written_by: dict[str, Any]  # world size, ZeRO stage, precision, versions: for people
    is_finite: bool  # every weight and every state was finite
    weights: str = ""  # runtime/fingerprint.py of all masters, 16 hex digits; empty: not known
    reason: str = REGULAR  # one of REASONS
    rewinds: int = 0  # that had happened in the run when it was written
    probe: dict[str, Any] | None = None  # a loss measured on these weights, and on what
    files: tuple[FileEntry, ...]
    version: int = VERSION

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
        files = tuple(
            FileEntry(
                name=row["name"],
                bytes=row["bytes"],
                sha256=row["sha256"],
                fragments=_name_fragments(row["fragments"], names),
            )
            for row in tree.pop("files")
        )
        parameters = {name: tuple(shape) for name, shape in tree.pop("parameters").items()}
        states = {name: tuple(kinds) for name, kinds in tree.pop("states").items()}
        manifest = Manifest(files=files, parameters=parameters, states=states, **tree)
        vars(manifest)["hash"] = sha256
        lies = find_lies(manifest)
        if manifest.reason not in REASONS:
            lies.append(f"it was written for the reason {quote(manifest.reason)}, which is none")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's manifest: {error!r}.") from None
    if lies:
        raise CheckpointError([f"{path}: refused: {lie}." for lie in lies[:MAX_NAMED]])
    return manifest


def _names_in_order(tree: Mapping[str, Any]) -> list[str]:
    """The names that fragments are numbered by. By code points, as Python compares strings."""
    return [*sorted(tree["parameters"]), *sorted(tree["replicated"])]


def _name_fragments(
    columns: Sequence[Sequence[Any]], names: Sequence[str]
) -> tuple[tuple[str, int, int], ...]:
    """With the parameters' names. What is no number of one gets a name that none has: a lie."""
    numbers, offsets, counts = columns
    known: dict[Any, str] = dict(enumerate(names))
    named = [known[n] if type(n) is int and n in known else f"number {n!r}" for n in numbers]
    return tuple(zip(named, offsets, counts, strict=True))


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
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seal(text: str, sha256: str) -> str:
    """A rendered manifest with its hash as the last key."""
    return f'{text[:-1]},"sha256":"{sha256}"}}\n'


def _has_hash(text: str, tree: Mapping[str, Any], sha256: Any) -> bool:
    """Whether that is the hash of ``tree``, which is read from ``text`` but for the hash."""
    # As it was written it need not be rendered again: that takes longer than all the rest.
    unsealed = f"{text[: len(text) - len(_seal('}', '0' * 64)) + 1]}}}"
    if isinstance(sha256, str) and text == _seal(unsealed, sha256) and _hash_of(unsealed) == sha256:
        return True
    return sha256 == _hash_of(_render(tree))


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:09d}"


def list_steps(root: Path, *, committed: bool = True) -> list[int]:
    """Steps that have a manifest, newest first; or, not ``committed``, the folders without one.

    Says nothing yet about what a manifest is worth.
    """
    if not root.is_dir():
        return []
    found = ((STEP_FOLDER.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir())
    return sorted(
        (
            int(match[1])
            for match, path in found
            if match and (path / MANIFEST).is_file() == committed
        ),
        reverse=True,
    )


def fragment_file(rank: int, attempt: str) -> str:
    """Another name in every attempt of a Slurm job: two live copies of it write no file in common.

    Readers take the names from the manifest.
    """
    return f"rank-{rank:05d}{'' if attempt == LOCAL else f'.{attempt}'}.safetensors"


def tensor_name(parameter: str, kind: str, offset: int) -> str:
    return f"{parameter}:{kind}:{offset}"


def plan_reads(
    files: Sequence[FileEntry],
) -> Mapping[str, tuple[tuple[int, int, str], ...]]:
    """For each parameter, where its pieces are: (offset, elements, file), sorted by offset."""
    pieces: dict[str, list[tuple[int, int, str]]] = {}
    for entry in files:
        for parameter, offset, count in entry.fragments:
            pieces.setdefault(parameter, []).append((offset, count, entry.name))
    return {parameter: tuple(sorted(found)) for parameter, found in pieces.items()}


def find_gaps(manifest: Manifest) -> list[str]:
    """Parameters whose pieces do not cover them exactly once."""
    problems = []
    reads = plan_reads(manifest.files)
    replicated = {name: row["shape"] for name, row in manifest.replicated.items()}
    for name, shape in (manifest.parameters | replicated).items():
        numel = math.prod(shape)
        end = 0
        for offset, count, _ in reads.get(name, ()):
            if offset != end:
                break
            end = offset + count
        else:
            if end == numel:
                continue
        problems.append(f"{name}: elements around {end} of {numel} are missing or doubled")
    return problems
