"""How a source is cut into parts, and the hashes of each part and of the whole. Pure.

A part is a run of raw files that one process cleans. Parts depend on the raw files alone, never on
the number of tasks or processes, and so do the documents' files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.config.data import CorpusConfig
from lmscale.corpus.documents import FORMAT_VERSION
from lmscale.corpus.inputs import RawFile
from lmscale.tasks.array_tasks import SharedBuild

PART_VERSION = 1
# Settings that no document depends on: which files are read is in their list, and the limit is
# looked at again when all parts are there. So a part need not be made again for either.
_NOT_OF_A_PART = ("inputs", "max_bad_records")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of raw files. ``key`` is a hash of them and of the rules they are cleaned by."""

    number: int
    files: tuple[RawFile, ...]
    key: str

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """One source to build: its parts, and the folder they make together."""

    name: str
    config: CorpusConfig
    parts: tuple[Part, ...]
    build: SharedBuild

    @property
    def folder(self) -> Path:
        """Folder of the finished parts, each in a folder named by its key."""
        return self.build.folder / "parts"

    @property
    def num_files(self) -> int:
        return sum(len(part.files) for part in self.parts)


def plan_source(
    config: CorpusConfig, name: str, files: tuple[RawFile, ...], *, rank: int
) -> SourcePlan:
    """The plan of source ``name``, which is number ``rank`` of the corpus."""
    rules = {key: v for key, v in made_by(config, name).items() if key not in _NOT_OF_A_PART}
    runs = cut_into_runs([file.bytes for file in files], config.part_bytes)
    parts = tuple(
        Part(number=number, files=files[a:b], key=_hash(PART_VERSION, name, rules, files[a:b]))
        for number, (a, b) in enumerate(runs)
    )
    build = SharedBuild(
        final=Path(config.folder) / name,
        key=_hash(FORMAT_VERSION, name, made_by(config, name), files),
        sizes=tuple(part.bytes for part in parts),
        rank=rank,
    )
    return SourcePlan(name=name, config=config, parts=parts, build=build)


def cut_into_runs(sizes: Sequence[int], at_least: int) -> list[tuple[int, int]]:
    """(first, end) of runs of at least so many bytes; the last run may hold less."""
    runs = []
    first = run_bytes = 0
    for number, size in enumerate(sizes):
        run_bytes += size
        if run_bytes >= at_least or number == len(sizes) - 1:
            runs.append((first, number + 1))
            first, run_bytes = number + 1, 0
    return runs


def made_by(config: CorpusConfig, name: str) -> dict[str, Any]:
    """The settings that a source's documents depend on."""
    rules = config.model_dump(mode="json", exclude={"folder", "sources", "part_bytes"})
    return {**rules, **config.sources[name].model_dump(mode="json")}


def _hash(version: int, name: str, rules: dict[str, Any], files: Sequence[RawFile]) -> str:
    listing = [[str(file.path), file.bytes, file.mtime_ns] for file in files]
    content = json.dumps([version, name, rules, listing], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
