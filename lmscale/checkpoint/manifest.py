"""What a checkpoint says of itself, as a value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

VERSION = 2
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
    weights: str = ""  # ranks/fingerprint.py of all masters, 16 hex digits; empty: not known
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
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seal(text: str, sha256: str) -> str:
    """A rendered manifest with its hash as the last key."""
    return f'{text[:-1]},"sha256":"{sha256}"}}\n'
