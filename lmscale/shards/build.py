"""Build datasets from the corpus: tokenise slices in processes, then number and list the shards.

Everything happens in ``SHARDS/<source>/.<split>.building``. There each finished shard has a record
with its size, hash and the place where the next begins, so a killed build goes on where it was. The
dataset's folder appears by one rename, whole.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from lmscale.config import RunConfig
from lmscale.corpus import load_corpus_manifest
from lmscale.corpus.documents import SPLITS, DocumentFile, document_paths
from lmscale.errors import ConfigError, DataError
from lmscale.runtime.atomic import (
    fsync_folder,
    have_sizes,
    replace_folder,
    write_json,
    writing,
)
from lmscale.runtime.processes import locked, run_tasks
from lmscale.runtime.progress import progress
from lmscale.shards.manifest import MANIFEST_NAME, Manifest, load_manifest, save_manifest
from lmscale.shards.plan import Slice, build_key, expect_bytes, plan_slices
from lmscale.shards.tasks import SliceTask, build_slice, finished_parts
from lmscale.shards.writer import ShardRules
from lmscale.tokenizer import Tokenizer, load_tokenizer

PARTS = "parts"


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """One dataset's folder and manifest, and whether it was built now or found finished."""

    folder: Path
    manifest: Manifest
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """One dataset to build."""

    final: Path
    documents: Path  # the folder of the document files
    files: tuple[DocumentFile, ...]
    rules: ShardRules
    key: str

    @property
    def work(self) -> Path:
        return self.final.with_name(f".{self.final.name}.building")

    @property
    def parts(self) -> Path:
        return self.work / PARTS


def build_shards(
    config: RunConfig, *, processes: int | None = None, force: bool = False
) -> tuple[DatasetSummary, ...]:
    """Build ``SHARDS/<source>/train`` and ``heldout`` for every source of the corpus.

    The shards are the same whatever the number of processes (``shards.processes`` by default).
    Datasets built before from the same are left as they are; built from others, they are a
    ``DataError`` unless ``force`` replaces them. A split without documents gets no dataset.
    """
    if not config.corpus.sources:
        raise ConfigError("corpus.sources: names no source; there is nothing to make shards of.")
    tokenizer = load_tokenizer(config.tokenizer.folder)
    datasets = _datasets(config, tokenizer)
    problems: list[str] = []
    found = {d.final: None if force else _existing(d, problems) for d in datasets}
    missing = [dataset for dataset in datasets if found[dataset.final] is None]
    if problems:
        raise DataError(problems)
    count = config.shards.processes if processes is None else processes
    with ExitStack() as locks:
        with writing("shards", config.shards.folder):
            for dataset in missing:
                dataset.final.parent.mkdir(parents=True, exist_ok=True)
                lock = dataset.final.with_name(f".{dataset.final.name}.lock")
                locks.enter_context(locked(lock, f"{dataset.final}"))
                _prepare(dataset, force)
        _build_parts(config, tokenizer, missing, count)
        for dataset in missing:
            with writing("shards", dataset.final):
                _finish(dataset, tokenizer)
    return tuple(
        DatasetSummary(
            folder=dataset.final,
            manifest=load_manifest(dataset.final),
            is_new=found[dataset.final] is None,
        )
        for dataset in datasets
    )


def _datasets(config: RunConfig, tokenizer: Tokenizer) -> list[_Dataset]:
    datasets = []
    for source in config.corpus.sources:
        corpus = Path(config.corpus.folder) / source
        manifest = load_corpus_manifest(corpus)
        for split in SPLITS:
            files = tuple(file for _, file in document_paths(corpus, split))
            if not files:
                continue
            rules = ShardRules(
                source=source,
                split=split,
                tokenizer_fingerprint=tokenizer.fingerprint,
                max_bytes=config.shards.max_bytes,
                block_tokens=config.shards.block_tokens,
                dtype=tokenizer.dtype.name,
            )
            datasets.append(
                _Dataset(
                    final=Path(config.shards.folder) / source / split,
                    documents=corpus / split,
                    files=files,
                    rules=rules,
                    key=build_key(manifest, split, tokenizer, config.shards),
                )
            )
    return datasets


def _existing(dataset: _Dataset, problems: list[str]) -> Manifest | None:
    """The manifest of a finished build of the same; anything else there is a problem."""
    final, rules = dataset.final, dataset.rules
    if not final.exists():
        return None
    try:
        manifest = load_manifest(final)
    except DataError as error:
        problems.append(f"{final} exists and is no dataset: {error} Name another shards.folder.")
        return None
    if manifest.inputs == dataset.key:
        return manifest if _is_whole(final, manifest) else None
    if manifest.tokenizer_fingerprint != rules.tokenizer_fingerprint:
        what = (
            f"with another tokenizer ({manifest.tokenizer_fingerprint[:12]}; this one is "
            f"{rules.tokenizer_fingerprint[:12]})"
        )
    else:
        what = "from other documents or with another shards.max_bytes or shards.block_tokens"
    problems.append(
        f"{final} was built {what}. Name another shards.folder, or replace it with --force."
    )
    return manifest


def _is_whole(final: Path, manifest: Manifest) -> bool:
    """Where a shard is lost, the dataset is built again."""
    return have_sizes((final / entry.name, entry.bytes) for entry in manifest.shards)


def _prepare(dataset: _Dataset, force: bool) -> None:
    """Make the work folder, or go on with the one that a killed build of the same has left."""
    work, note = dataset.work, dataset.work / "build.json"
    if force or (work.exists() and not note.exists()):
        shutil.rmtree(work, ignore_errors=True)
    if work.exists():
        if json.loads(note.read_bytes())["key"] != dataset.key:
            raise DataError(
                f"{work} holds an unfinished build with another tokenizer, corpus or other "
                f"settings. Finish that one first, or start over with --force."
            )
        for torn in dataset.parts.glob(".*.tmp"):
            torn.unlink()
        return
    dataset.parts.mkdir(parents=True)
    write_json(note, {"key": dataset.key})


def _build_parts(
    config: RunConfig, tokenizer: Tokenizer, datasets: list[_Dataset], processes: int
) -> None:
    tasks = [
        SliceTask(
            slice=part,
            documents=dataset.documents,
            files=dataset.files,
            parts=dataset.parts,
            tokenizer_folder=Path(config.tokenizer.folder),
            rules=dataset.rules,
        )
        for dataset in datasets
        if not _is_complete(dataset)
        for part in _slices(dataset, tokenizer)
    ]
    if not tasks:
        return
    with progress("shards", sum(t.slice.end - t.slice.start for t in tasks), "bytes") as advance:
        for task, _ in run_tasks(build_slice, tasks, processes=processes):
            advance(task.slice.end - task.slice.start)


def _slices(dataset: _Dataset, tokenizer: Tokenizer) -> tuple[Slice, ...]:
    """The plan, made once and kept, so that a resumed build has the same."""
    path = dataset.work / "slices.json"
    if path.exists():
        return tuple(Slice(**part) for part in json.loads(path.read_bytes()))
    slices = plan_slices(
        sum(file.bytes for file in dataset.files),
        expected_bytes=expect_bytes(dataset.documents, dataset.files, tokenizer),
        max_bytes=dataset.rules.max_bytes,
    )
    with writing("the plan of the shards", dataset.work):
        write_json(path, [vars(part) for part in slices])
    return slices


def _is_complete(dataset: _Dataset) -> bool:
    return (dataset.work / MANIFEST_NAME).exists() or (dataset.work / "names.json").exists()


def _finish(dataset: _Dataset, tokenizer: Tokenizer) -> None:
    """Number the shards, write the manifest, name the folder. May be killed at any point."""
    work = dataset.work
    if not (work / MANIFEST_NAME).exists():
        names = work / "names.json"
        parts = finished_parts(dataset.parts, _slices(dataset, tokenizer))
        entries = [
            replace(part, name=f"{dataset.rules.source}-{number:06d}.tar")
            for number, part in enumerate(parts)
        ]
        write_json(names, [entry.name for entry in entries])  # from here on, only renames are left
        for part, entry in zip(parts, entries, strict=True):
            if (dataset.parts / part.name).exists():
                os.replace(dataset.parts / part.name, work / entry.name)
        fsync_folder(work)
        manifest = Manifest(
            source=dataset.rules.source,
            split=dataset.rules.split,
            tokenizer_fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            dtype=dataset.rules.dtype,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            block_tokens=dataset.rules.block_tokens,
            inputs=dataset.key,
            shards=tuple(entries),
        )
        save_manifest(manifest, work)
    shutil.rmtree(dataset.parts, ignore_errors=True)
    for note in ("names.json", "slices.json"):
        (work / note).unlink(missing_ok=True)
    if dataset.final.exists():
        load_manifest(dataset.final)  # only what lmscale wrote is replaced
    replace_folder(work, dataset.final)
    (dataset.final / "build.json").unlink(missing_ok=True)
