"""Manifests as they are read: nothing is believed before it was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmscale.checkpoint.layout import MAX_NAMED
from lmscale.checkpoint.manifest import (
    REASONS,
    VERSION,
    FileEntry,
    Manifest,
    _hash_of,
    _names_in_order,
    _render,
    _seal,
)
from lmscale.checkpoint.plausible import find_lies
from lmscale.errors import CheckpointError
from lmscale.files.strangers import quote


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


def _name_fragments(
    columns: Sequence[Sequence[Any]], names: Sequence[str]
) -> tuple[tuple[str, int, int], ...]:
    """With the parameters' names. What is no number of one gets a name that none has: a lie."""
    numbers, offsets, counts = columns
    known: dict[Any, str] = dict(enumerate(names))
    named = [known[n] if type(n) is int and n in known else f"number {n!r}" for n in numbers]
    return tuple(zip(named, offsets, counts, strict=True))


def _has_hash(text: str, tree: Mapping[str, Any], sha256: Any) -> bool:
    """Whether that is the hash of ``tree``, which is read from ``text`` but for the hash."""
    # As it was written it need not be rendered again: that takes longer than all the rest.
    unsealed = f"{text[: len(text) - len(_seal('}', '0' * 64)) + 1]}}}"
    if isinstance(sha256, str) and text == _seal(unsealed, sha256) and _hash_of(unsealed) == sha256:
        return True
    return sha256 == _hash_of(_render(tree))
