"""Build the corpus: clean each part of each source, take duplicates out, swap the result in.

One process builds all, or the tasks of an array share the work: documents, order and files are
the same. ``lmscale.tasks`` says how. A part is a run of raw files that one process cleans. Parts
depend on the raw files alone, never on the number of tasks or processes, and so do the documents'
files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.account import Account
from lmscale.corpus.cleaner import CUT_AS, NAMED_FILES
from lmscale.corpus.columns import check_columns
from lmscale.corpus.documents import (
    FORMAT_VERSION,
    SPLITS,
    CorpusManifest,
    DocumentFile,
    load_corpus_manifest,
    render_manifest,
)
from lmscale.corpus.duplicates import RewriteTask, dropped_lines, find_duplicates, rewrite_file
from lmscale.corpus.inputs import RawFile, find_inputs
from lmscale.corpus.page_encoding import AUTO
from lmscale.corpus.parts import Part, PartRecord, load_whole_part
from lmscale.errors import ConfigError, DataError
from lmscale.tasks.building import Builder, BuildSummary
from lmscale.tasks.finishing import Progress
from lmscale.tasks.processes import run_tasks
from lmscale.tasks.target import ArrayTask, Move, Target, UnitsMissing

PART_VERSION = 4
REASONS = ("broken", "empty", "short", "overlong", "duplicate")
# Which setting a document is lost to.
_SETTINGS = {
    "broken": "the files",
    "empty": "the inputs",
    "short": "corpus.min_chars",
    "overlong": "corpus.max_chars",
    "held out": "corpus.heldout_fraction",
}
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


def plan_sources(config: CorpusConfig) -> dict[str, SourceTarget]:
    """What a build of each source would be made of. Changes nothing."""
    return {target.name: target for target in _plan_targets(config)}


@dataclass(frozen=True, kw_only=True)
class SourceTarget(Target[CorpusManifest]):
    """One source to build of its parts."""

    kind = "corpus"
    setting = "corpus.folder"
    contents = SPLITS

    units: tuple[Part, ...] = ()
    config: CorpusConfig
    made_by: dict[str, Any]  # the settings that the documents depend on

    @property
    def parts(self) -> Path:
        return self.folder / "parts"

    @property
    def leftovers(self) -> tuple[Path, ...]:
        return tuple(part.folder for part in self.units)

    def load(self, folder: Path) -> CorpusManifest:
        return load_corpus_manifest(folder)

    def key_of(self, manifest: CorpusManifest) -> str:
        return manifest.key

    def files_of(self, manifest: CorpusManifest) -> Iterable[tuple[str, int]]:
        for split, files in manifest.splits.items():
            yield from ((f"{split}/{file.name}", file.bytes) for file in files)

    def describe_difference(self, manifest: CorpusManifest) -> str:
        old, new = manifest.made_by, self.made_by
        changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        if changed:
            return f"from other settings ({', '.join(changed)})."
        return "from raw files that have changed since."

    def assemble(self, processes: int) -> tuple[dict[str, Any], list[Move]]:
        """Raises ``DataError`` where no document is left to train on."""
        records = self._load_parts(processes)
        dropped, cut, passed_over = Counter[str](), Counter[str](), Counter[str]()
        without_text: list[str] = []
        for record in records:
            dropped.update(record.dropped)
            cut.update(record.cut)
            passed_over.update(record.passed_over)
            without_text += record.without_text
        rewrites = self._plan_rewrites(records, dropped, cut)
        # A few files are not worth processes of their own.
        count = processes if len(rewrites) > 8 else 1
        rewritten = {
            task.path: (task.target, file)
            for task, file in run_tasks(rewrite_file, rewrites, processes=count)
        }
        splits: dict[str, tuple[DocumentFile, ...]] = {}
        moves: list[Move] = []
        for split in SPLITS:
            (self.work / split).mkdir(exist_ok=True)
            files = []
            for part, record in zip(self.units, records, strict=True):
                for file in record.splits[split]:
                    source = part.folder / split / file.name
                    source, file = rewritten.get(source, (source, file))
                    if not file.documents:
                        continue
                    name = f"documents-{len(files):05d}.jsonl"
                    files.append(replace(file, name=name))
                    source = str(source.relative_to(self.folder))
                    moves.append((source, f"{split}/{name}", file.bytes))
            splits[split] = tuple(files)
        manifest = CorpusManifest(
            source=self.name,
            key=self.key,
            made_by=self.made_by,
            documents_read=sum(record.documents_read for record in records),
            dropped={reason: dropped[reason] for reason in REASONS if dropped[reason]},
            cut={how: count for how, count in cut.items() if count},
            line_ends=sum(record.line_ends for record in records),
            normalized=sum(record.normalized for record in records),
            markup_chars=sum(record.markup_chars for record in records),
            passed_over=dict(sorted(passed_over.items())),
            files_read=sum(len(part.files) for part in self.units),
            files_without_text=sum(record.files_without_text for record in records),
            without_text=tuple(without_text[:NAMED_FILES]),
            splits=splits,
        )
        self._check_left(manifest)
        return render_manifest(manifest), moves

    def _load_parts(self, processes: int) -> list[PartRecord]:
        """The records of all parts. Raises ``UnitsMissing`` for parts that are not whole."""
        folders = [part.folder for part in self.units]
        count = processes if len(folders) > 8 else 1
        loaded = dict(run_tasks(load_whole_part, folders, processes=count))
        found = [loaded[folder] for folder in folders]
        missing = [number for number, record in enumerate(found) if record is None]
        if missing:
            raise UnitsMissing(missing)
        records = [record for record in found if record is not None]
        account = Account(self.name, self.config.sources[self.name])
        for record in records:
            account.include(record.dropped.get("broken", 0), record.broken)
        account.check()
        return records

    def _plan_rewrites(
        self, records: Sequence[PartRecord], dropped: Counter[str], cut: Counter[str]
    ) -> list[RewriteTask]:
        """Files that hold a text of an earlier part. The counts are put right."""
        if not self.config.drop_exact_duplicates or len(records) == 1:
            return []
        indexes = [part.folder / "index.npy" for part in self.units]
        tasks = []
        for number, columns in enumerate(find_duplicates(indexes)):
            if not len(columns):
                continue
            folder = self.units[number].folder
            lost, num_cut = dropped_lines(indexes[number], columns)
            dropped["duplicate"] += len(columns)
            if num_cut:
                cut[CUT_AS[self.config.on_overlong]] -= num_cut
            for split in SPLITS:
                start = 0
                for file in records[number].splits[split]:
                    a, b = np.searchsorted(lost[split], [start, start + file.documents])
                    if a < b:
                        name = f"{number:06d}-{folder.name[:16]}-{split}-{file.name}"
                        task = RewriteTask(
                            path=folder / split / file.name,
                            lines=lost[split][a:b] - start,
                            file=file,
                            target=self.work / "kept" / name,
                        )
                        tasks.append(task)
                    start += file.documents
        return tasks

    def _check_left(self, manifest: CorpusManifest) -> None:
        if manifest.splits["train"]:
            return
        gone = dict(manifest.dropped)
        if heldout := manifest.documents("heldout"):
            gone["held out"] = heldout
        settings = [_SETTINGS[reason] for reason in gone if reason in _SETTINGS]
        look = f" Look at {' and '.join(settings)}." if settings else ""
        where = f"{manifest.files_read} files"
        if manifest.without_text:
            where += f", the first without text {manifest.without_text[0]}"
        raise DataError(
            f"corpus.sources.{self.name}: no document is left for training of "
            f"{manifest.documents_read} read in {where} ({_list_counts(gone)}; passed over: "
            f"{_list_counts(manifest.passed_over)}).{look}"
        )


def _list_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "none"


def _plan_targets(config: CorpusConfig) -> list[SourceTarget]:
    if not config.sources:
        raise ConfigError("corpus.sources: names no source; give at least one with its inputs.")
    return [
        _plan_source(config, name, files, rank=rank)
        for rank, (name, files) in enumerate(find_inputs(config).items())
    ]


def _builder(config: CorpusConfig, processes: int) -> Builder[CorpusManifest]:
    targets = _plan_targets(config)

    def check(parts: Sequence[Part]) -> None:
        check_columns(config, [(part.source, file) for part in parts for file in part.files])

    return Builder(targets=targets, title="corpus", processes=processes, check=check)


def _plan_source(
    config: CorpusConfig, name: str, files: tuple[RawFile, ...], *, rank: int
) -> SourceTarget:
    """Source ``name``, which is number ``rank`` of the corpus, with its parts."""
    made_by = settings_of(config, name)
    if any(file.format == "html" and file.rules.encoding == AUTO for file in files):
        made_by["encoding"] = AUTO  # which was not always what a page declares
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


def settings_of(config: CorpusConfig, name: str) -> dict[str, Any]:
    """The settings that the documents of source ``name`` depend on."""
    made_by = config.model_dump(mode="json", exclude={"folder", "sources", "part_bytes", "retries"})
    return made_by | config.sources[name].made_by()


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
    listing = [[file.location, file.bytes, file.version, *file.own] for file in files]
    content = json.dumps([version, name, rules, listing], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
