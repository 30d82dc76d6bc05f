"""Build the corpus: clean each part of each source, take duplicates out, swap the result in.

One process builds all, or the tasks of an array share the work: documents, order and files are
the same. ``lmscale.tasks`` says how. A part is a run of raw files that one process cleans. Parts
depend on the raw files alone, never on the number of tasks or processes, and so do the documents'
files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmscale.config.data import CorpusConfig
from lmscale.corpus.documents import FORMAT_VERSION, CorpusManifest
from lmscale.corpus.finish import SourceTarget
from lmscale.corpus.inputs import RawFile, find_inputs
from lmscale.corpus.parts import Part
from lmscale.errors import ConfigError
from lmscale.tasks.array_tasks import ArrayTask
from lmscale.tasks.building import Builder, BuildSummary
from lmscale.tasks.markers import Progress

PART_VERSION = 1
# Settings that no document depends on: which files are read is in their list, and the limit is
# looked at again when all parts are there. So a part need not be made again for either.
_NOT_OF_A_PART = ("inputs", "max_bad_records")


def build_corpus(
    config: CorpusConfig,
    task: ArrayTask | None = None,
    *,
    processes: int = 1,
    force: bool = False,
) -> BuildSummary[CorpusManifest]:
    """Build every source that is not built yet, or do one task's share; see ``Builder.build``.

    0 processes means one per core. A source appears whole or not at all.
    """
    return _builder(config, processes).build(task, force=force)


def corpus_progress(config: CorpusConfig, num_tasks: int) -> tuple[Progress, ...]:
    """How far each source is when built by ``num_tasks`` tasks. Changes nothing."""
    return _builder(config, 1).progress(num_tasks)


def _builder(config: CorpusConfig, processes: int) -> Builder[CorpusManifest]:
    if not config.sources:
        raise ConfigError("corpus.sources: names no source; give at least one with its inputs.")
    targets = [
        _plan_source(config, name, files, rank=rank)
        for rank, (name, files) in enumerate(find_inputs(config.sources).items())
    ]
    return Builder(targets=targets, title="corpus", unit="raw bytes", processes=processes)


def _plan_source(
    config: CorpusConfig, name: str, files: tuple[RawFile, ...], *, rank: int
) -> SourceTarget:
    """Source ``name``, which is number ``rank`` of the corpus, with its parts."""
    made_by = config.model_dump(mode="json", exclude={"folder", "sources", "part_bytes"})
    made_by |= config.sources[name].model_dump(mode="json")
    rules = {key: value for key, value in made_by.items() if key not in _NOT_OF_A_PART}
    target = SourceTarget(
        name=name,
        what=f"the documents of source {name}",
        final=Path(config.folder) / name,
        key=_hash(FORMAT_VERSION, name, made_by, files),
        rank=rank,
        config=config,
        made_by=made_by,
    )
    runs = [files[a:b] for a, b in cut_into_runs([file.bytes for file in files], config.part_bytes)]
    parts = (
        Part(
            source=name,
            config=config,
            files=run,
            folder=target.parts / _hash(PART_VERSION, name, rules, run),
        )
        for run in runs
    )
    return replace(target, units=tuple(parts))


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


def _hash(version: int, name: str, rules: dict[str, Any], files: Sequence[RawFile]) -> str:
    listing = [[str(file.path), file.bytes, file.mtime_ns] for file in files]
    content = json.dumps([version, name, rules, listing], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
