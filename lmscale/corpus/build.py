"""Build the corpus: read each source, clean, drop, split, write, and swap the result in."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.config.data import CorpusConfig
from lmscale.corpus.clean import digest_of, is_heldout, normalize, split_text, strip_html
from lmscale.corpus.documents import (
    FILE_BYTES,
    FORMAT_VERSION,
    SPLITS,
    CorpusManifest,
    Document,
    DocumentWriter,
    load_corpus_manifest,
    render_manifest,
)
from lmscale.corpus.inputs import RawFile, find_inputs
from lmscale.corpus.readers import BadRecords, RawDocument, read_source
from lmscale.errors import ConfigError, DataError
from lmscale.runtime.atomic import have_sizes, replace_folder, write_json, writing
from lmscale.runtime.processes import locked, run_tasks
from lmscale.runtime.progress import progress

REASONS = ("broken", "empty", "short", "overlong", "duplicate")


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """One source's manifest, and whether it was built now or found finished."""

    manifest: CorpusManifest
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """What a build left in the corpus folder."""

    folder: Path
    sources: dict[str, SourceSummary]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One source to build; crosses to a worker process."""

    name: str
    config: CorpusConfig
    files: tuple[RawFile, ...]
    key: str


def build_corpus(config: CorpusConfig, *, processes: int = 1, force: bool = False) -> CorpusSummary:
    """Build every source that is not built yet, in parallel when there are several.

    A source built before from the same settings and raw files is left as it is; one built from
    others is a ``DataError`` unless ``force`` rebuilds it. A source appears whole or not at all.
    """
    if not config.sources:
        raise ConfigError("corpus.sources: names no source; give at least one with its inputs.")
    folder = Path(config.folder)
    inputs = find_inputs(config.sources)
    jobs, found, problems = [], {}, []
    for name, files in inputs.items():
        job = _Job(name=name, config=config, files=files, key=_key(config, name, files))
        with writing("the corpus", folder):
            old = None if force else _existing(job, problems)
        if old is None:
            jobs.append(job)
        else:
            found[name] = SourceSummary(manifest=old, is_new=False)
    if problems:
        raise DataError(problems)
    total = sum(file.bytes for job in jobs for file in job.files)
    if jobs:
        with progress("corpus", total, "raw bytes") as advance:
            for job, manifest in run_tasks(_build_source, jobs, processes=processes):
                found[job.name] = SourceSummary(manifest=manifest, is_new=True)
                advance(sum(file.bytes for file in job.files))
    return CorpusSummary(folder=folder, sources={name: found[name] for name in config.sources})


def _made_by(config: CorpusConfig, name: str) -> dict[str, Any]:
    """The settings that a source's documents depend on."""
    rules = config.model_dump(mode="json", exclude={"folder", "sources"})
    return {**rules, **config.sources[name].model_dump(mode="json")}


def _key(config: CorpusConfig, name: str, files: tuple[RawFile, ...]) -> str:
    listing = [[str(file.path), file.bytes, file.mtime_ns] for file in files]
    content = json.dumps([FORMAT_VERSION, name, _made_by(config, name), listing], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _existing(job: _Job, problems: list[str]) -> CorpusManifest | None:
    """The manifest of an earlier build of the same; one of something else is a problem."""
    folder = Path(job.config.folder) / job.name
    if not folder.exists():
        return None
    try:
        manifest = load_corpus_manifest(folder)
    except DataError:
        problems.append(
            f"{folder} exists and holds no corpus of lmscale. Name another corpus.folder, or move "
            "it away."
        )
        return None
    if manifest.key == job.key:
        return manifest if _is_whole(folder, manifest) else None
    wanted = _made_by(job.config, job.name)
    changed = sorted(key for key in wanted if manifest.made_by.get(key) != wanted[key])
    what = (
        f"other settings ({', '.join(changed)})" if changed else "raw files that have changed since"
    )
    problems.append(
        f"{folder} was built from {what}. Rebuild it with --force, or name another corpus.folder."
    )
    return manifest


def _build_source(job: _Job) -> CorpusManifest:
    final = Path(job.config.folder) / job.name
    work = final.with_name(f".{job.name}.building")
    with writing(f"the documents of source {job.name}", final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final.with_name(f".{job.name}.lock"), f"the corpus of source {job.name}"):
            shutil.rmtree(work, ignore_errors=True)  # what a killed build left
            try:
                manifest = _write_source(job, work)
                write_json(work / "manifest.json", render_manifest(manifest))
                if final.exists():
                    load_corpus_manifest(final)  # only what lmscale wrote is replaced
                replace_folder(work, final)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
    return manifest


def _is_whole(folder: Path, manifest: CorpusManifest) -> bool:
    """Where a file is lost, the source is built again."""
    return have_sizes(
        (folder / split / f.name, f.bytes) for split, rows in manifest.splits.items() for f in rows
    )


def _write_source(job: _Job, work: Path) -> CorpusManifest:
    cleaner = _Cleaner(job)
    writers: dict[str, DocumentWriter] = {}
    try:
        for split in SPLITS:
            writers[split] = DocumentWriter(work / split, file_bytes=FILE_BYTES)
        for split, document in cleaner.documents():
            writers[split].write(document)
        splits = {split: writer.close() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()
    if not splits["train"]:
        dropped = ", ".join(f"{count} {reason}" for reason, count in cleaner.dropped().items())
        raise DataError(
            f"corpus.sources.{job.name}: no document is left for training of "
            f"{cleaner.read} read in {len(job.files)} files (dropped: {dropped or 'none'}; "
            f"held out: {sum(file.documents for file in splits['heldout'])}). "
            "Check the inputs, corpus.min_chars, corpus.max_chars and corpus.heldout_fraction."
        )
    return CorpusManifest(
        source=job.name,
        key=job.key,
        made_by=_made_by(job.config, job.name),
        documents_read=cleaner.read,
        dropped=cleaner.dropped(),
        cut=dict(cleaner.cut),
        splits=splits,
    )


class _Cleaner:
    """Applies the rules to a source's documents and counts what they did."""

    def __init__(self, job: _Job) -> None:
        self.read = 0
        self.cut: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._job = job
        self._seen: set[bytes] = set()
        self._bad = BadRecords(source=job.name, limit=job.config.sources[job.name].max_bad_records)

    def dropped(self) -> dict[str, int]:
        counts = {**self._dropped, "broken": self._bad.count}
        return {reason: counts[reason] for reason in REASONS if counts.get(reason)}

    def documents(self) -> Iterator[tuple[str, Document]]:
        """Pairs of split and document, in the order of the raw files."""
        source = self._job.config.sources[self._job.name]
        for raw in read_source(self._job.name, source, self._job.files, self._bad):
            self.read += 1
            yield from self._clean(raw)
        self.read += self._bad.count

    def _clean(self, raw: RawDocument) -> Iterator[tuple[str, Document]]:
        config = self._job.config
        text = strip_html(raw.text) if config.strip_html else raw.text
        text = normalize(text, config.normalization)
        reason = self._reason_to_drop(text)
        if reason is None:
            digest = digest_of(text)
            if config.drop_exact_duplicates:
                if digest in self._seen:
                    reason = "duplicate"
                self._seen.add(digest)
        if reason is not None:
            self._dropped[reason] += 1
            return
        # The whole text decides, so the pieces of a split document stay on one side.
        split = "heldout" if is_heldout(digest, config.heldout_fraction) else "train"
        name = f"{raw.file.name}:{raw.record}"
        pieces = self._pieces(text)
        for number, piece in enumerate(pieces, start=1):
            id_ = name if len(pieces) == 1 else f"{name}#{number}"
            yield split, Document(text=piece, id=id_, source=self._job.name)

    def _reason_to_drop(self, text: str) -> str | None:
        config = self._job.config
        chars = len(text.strip())
        if chars < config.min_chars:
            return "short" if chars else "empty"
        if len(text) > config.max_chars and config.on_overlong == "drop":
            return "overlong"
        return None

    def _pieces(self, text: str) -> list[str]:
        config = self._job.config
        if len(text) <= config.max_chars:
            return [text]
        self.cut["split" if config.on_overlong == "split" else "truncated"] += 1
        pieces = split_text(text, config.max_chars)
        return pieces if config.on_overlong == "split" else pieces[:1]
