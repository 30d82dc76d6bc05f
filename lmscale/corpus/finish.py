"""Make one source's documents of its parts: duplicates out, files numbered, manifest rendered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.corpus.documents import SPLITS, CorpusManifest, DocumentFile, render_manifest
from lmscale.corpus.duplicates import RewriteTask, dropped_lines, find_duplicates, rewrite_file
from lmscale.corpus.parts import CUT_AS, PartRecord, load_part
from lmscale.corpus.plan import SourcePlan, made_by
from lmscale.corpus.readers import BadRecords
from lmscale.errors import DataError
from lmscale.tasks.processes import run_tasks
from lmscale.tasks.target import Move, UnitsMissing

REASONS = ("broken", "empty", "short", "overlong", "duplicate")


def assemble(plan: SourcePlan, processes: int) -> tuple[dict[str, Any], list[Move]]:
    """The source's manifest, and where each of its files comes from.

    Raises ``DataError`` where no document is left to train on.
    """
    records = _load_parts(plan)
    _check_broken(plan, records)
    dropped: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    for record in records:
        dropped.update(record.dropped)
        cut.update(record.cut)
    rewrites = _plan_rewrites(plan, records, dropped, cut)
    rewritten = dict(_run_rewrites(rewrites, processes))
    splits: dict[str, tuple[DocumentFile, ...]] = {}
    moves: list[Move] = []
    for split in SPLITS:
        (plan.build.work / split).mkdir(exist_ok=True)
        files = []
        for part, record in zip(plan.parts, records, strict=True):
            for file in record.splits[split]:
                source = plan.folder / part.key / split / file.name
                target = _target(plan, part.number, split, file)
                if target in rewritten:
                    source, file = target, rewritten[target]
                if not file.documents:
                    continue
                name = f"documents-{len(files):05d}.jsonl"
                files.append(replace(file, name=name))
                source = str(source.relative_to(plan.build.folder))
                moves.append((source, f"{split}/{name}", file.bytes))
        splits[split] = tuple(files)
    manifest = CorpusManifest(
        source=plan.name,
        key=plan.build.key,
        made_by=made_by(plan.config, plan.name),
        documents_read=sum(record.documents_read for record in records),
        dropped={reason: dropped[reason] for reason in REASONS if dropped[reason]},
        cut={how: count for how, count in cut.items() if count},
        splits=splits,
    )
    _check_left(plan, manifest)
    return render_manifest(manifest), moves


def _load_parts(plan: SourcePlan) -> list[PartRecord]:
    """The records of all parts. Raises ``UnitsMissing`` for parts that are not whole."""
    records = [load_part(plan.folder / part.key) for part in plan.parts]
    missing = [number for number, record in enumerate(records) if record is None]
    if missing:
        raise UnitsMissing(missing)
    return [record for record in records if record is not None]


def _check_broken(plan: SourcePlan, records: list[PartRecord]) -> None:
    limit = plan.config.sources[plan.name].max_bad_records
    bad = BadRecords(source=plan.name, limit=limit)
    for record in records:
        bad.include(record.dropped.get("broken", 0), record.broken)
    bad.check()


def _plan_rewrites(
    plan: SourcePlan, records: list[PartRecord], dropped: Counter[str], cut: Counter[str]
) -> list[RewriteTask]:
    """Files that hold a text of an earlier part. The counts are put right."""
    if not plan.config.drop_exact_duplicates or len(records) == 1:
        return []
    indexes = [plan.folder / part.key / "index.npy" for part in plan.parts]
    tasks = []
    for part, record, columns in zip(plan.parts, records, find_duplicates(indexes), strict=True):
        if not len(columns):
            continue
        lost = dropped_lines(indexes[part.number], columns)
        dropped["duplicate"] += lost.documents
        if lost.cut:
            cut[CUT_AS[plan.config.on_overlong]] -= lost.cut
        for split in SPLITS:
            start = 0
            for file in record.splits[split]:
                a, b = np.searchsorted(lost.lines[split], [start, start + file.documents])
                if a < b:
                    path = plan.folder / part.key / split / file.name
                    target = _target(plan, part.number, split, file)
                    lines = lost.lines[split][a:b] - start
                    tasks.append(RewriteTask(path=path, lines=lines, file=file, target=target))
                start += file.documents
    return tasks


def _run_rewrites(tasks: list[RewriteTask], processes: int) -> Iterator[tuple[Path, DocumentFile]]:
    """(target, file written) of each; a few files are not worth processes of their own."""
    count = processes if len(tasks) > 8 else 1
    for task, file in run_tasks(rewrite_file, tasks, processes=count):
        yield task.target, file


def _target(plan: SourcePlan, part: int, split: str, file: DocumentFile) -> Path:
    key = plan.parts[part].key[:16]
    return plan.build.work / "kept" / f"{part:06d}-{key}-{split}-{file.name}"


def _check_left(plan: SourcePlan, manifest: CorpusManifest) -> None:
    if manifest.splits["train"]:
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in manifest.dropped.items())
    raise DataError(
        f"corpus.sources.{plan.name}: no document is left for training of "
        f"{manifest.documents_read} read in {plan.num_files} files (dropped: {dropped or 'none'}; "
        f"held out: {manifest.documents('heldout')}). "
        "Check the inputs, corpus.min_chars, corpus.max_chars and corpus.heldout_fraction."
    )
