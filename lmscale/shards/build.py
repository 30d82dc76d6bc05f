"""Build datasets from the corpus: tokenise slices, then number and list the shards.

One process builds all, with worker processes of its own, or the tasks of an array share the work:
the shards are the same, byte for byte (``lmscale.tasks`` says how). Unfinished shards lie in
``SHARDS/<source>/.<split>.building``. There each finished shard has a record with its size, hash
and the place where the next one begins, so a killed build goes on from its last shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig
from lmscale.corpus.documents import SPLITS, DocumentFile, document_paths
from lmscale.errors import ConfigError
from lmscale.files.atomic import to_json_bytes, write_bytes_once, writing
from lmscale.shards.manifest import FORMAT_VERSION, Manifest, load_manifest, render_manifest
from lmscale.shards.slices import Slice, SliceTask, expect_bytes, finished_shards, plan_slices
from lmscale.shards.writer import ShardRules
from lmscale.tasks.array_tasks import ArrayTask
from lmscale.tasks.building import Builder, BuildSummary
from lmscale.tasks.finishing import Progress
from lmscale.tasks.target import Move, Target
from lmscale.tokenizer import Tokenizer, load_tokenizer

SLICES = "slices.json"


def build_shards(
    config: RunConfig,
    task: ArrayTask | None = None,
    *,
    processes: int | None = None,
    force: bool = False,
) -> BuildSummary[Manifest]:
    """Build ``SHARDS/<source>/train`` and ``heldout`` for every source, or do one task's share.

    The shards are the same whatever the number of processes (``shards.processes`` by default). A
    split without documents gets no dataset. ``Builder.build`` says what ``force`` does.
    """
    return _builder(config, processes).build(task, force=force)


def shards_progress(config: RunConfig, num_tasks: int) -> tuple[Progress, ...]:
    """How far each dataset is when built by ``num_tasks`` tasks. Changes nothing."""
    return _builder(config, None).progress(num_tasks)


@dataclass(frozen=True, kw_only=True)
class Dataset(Target[Manifest]):
    """One dataset to build, of shards that the slices of a split become."""

    kind = "dataset"
    setting = "shards.folder"
    contents = ("*.tar",)

    what: str = "shards"
    units: tuple[SliceTask, ...] = ()  # empty until planned
    documents: Path  # the folder of the document files
    files: tuple[DocumentFile, ...]
    tokenizer: Tokenizer
    rules: ShardRules

    def planned(self, *, keep: bool) -> Dataset:
        """The dataset with its slices, which ``keep`` writes down, for all tasks."""
        path = self.work / SLICES
        if path.exists():
            rows = json.loads(path.read_bytes())
        else:
            slices = plan_slices(
                sum(file.bytes for file in self.files),
                expected_bytes=expect_bytes(self.documents, self.files, self.tokenizer),
                max_bytes=self.rules.max_bytes,
            )
            rows = [vars(part) for part in slices]
        if keep:
            with writing("the plan of the shards", self.final.parent):
                self.parts.mkdir(parents=True, exist_ok=True)
                rows = json.loads(write_bytes_once(path, to_json_bytes(rows)))
        tasks = (
            SliceTask(
                slice=Slice(**row),
                documents=self.documents,
                files=self.files,
                parts=self.parts,
                tokenizer=self.tokenizer,
                rules=self.rules,
            )
            for row in rows
        )
        return replace(self, units=tuple(tasks))

    def load(self, folder: Path) -> Manifest:
        return load_manifest(folder)

    def key_of(self, manifest: Manifest) -> str:
        return manifest.inputs

    def files_of(self, manifest: Manifest) -> Iterable[tuple[str, int]]:
        return ((entry.name, entry.bytes) for entry in manifest.shards)

    def describe_difference(self, manifest: Manifest) -> str:
        old, new = manifest.tokenizer_fingerprint, self.tokenizer.fingerprint
        if old == new:
            return "from other documents or with another shards.max_bytes or shards.block_tokens"
        return f"with another tokenizer ({old[:12]}; this one is {new[:12]})"

    def assemble(self, processes: int) -> tuple[dict[str, Any], list[Move]]:
        parts = finished_shards(self.units)
        shards = [
            replace(part, name=f"{self.rules.source}-{number:06d}.tar")
            for number, part in enumerate(parts)
        ]
        manifest = Manifest(
            source=self.rules.source,
            split=self.rules.split,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            vocab_size=self.tokenizer.vocab_size,
            dtype=self.rules.dtype,
            eos_id=self.tokenizer.eos_id,
            pad_id=self.tokenizer.pad_id,
            block_tokens=self.rules.block_tokens,
            inputs=self.key,
            shards=tuple(shards),
        )
        folder = self.parts.relative_to(self.folder)
        moves = [
            (str(folder / part.name), shard.name, part.bytes)
            for part, shard in zip(parts, shards, strict=True)
        ]
        return render_manifest(manifest), moves


def _builder(config: RunConfig, processes: int | None) -> Builder[Manifest]:
    return Builder(
        targets=_find_datasets(config, load_tokenizer(config.tokenizer.folder)),
        title="shards",
        unit="bytes",
        processes=config.shards.processes if processes is None else processes,
    )


def _find_datasets(config: RunConfig, tokenizer: Tokenizer) -> list[Dataset]:
    """Train and heldout of every source; a split without documents has none."""
    if not config.corpus.sources:
        raise ConfigError("corpus.sources: names no source; there is nothing to make shards of.")
    datasets = []
    for source in config.corpus.sources:
        corpus = Path(config.corpus.folder) / source
        for split in SPLITS:
            files = tuple(file for _, file in document_paths(corpus, split))
            if not files:
                continue
            final = Path(config.shards.folder) / source / split
            rules = ShardRules(
                source=source,
                split=split,
                tokenizer_fingerprint=tokenizer.fingerprint,
                max_bytes=config.shards.max_bytes,
                block_tokens=config.shards.block_tokens,
                dtype=tokenizer.dtype.name,
            )
            dataset = Dataset(
                name=str(final),
                final=final,
                key=_key(files, rules),
                rank=len(datasets),
                documents=corpus / split,
                files=files,
                tokenizer=tokenizer,
                rules=rules,
            )
            datasets.append(dataset)
    return datasets


def _key(files: Sequence[DocumentFile], rules: ShardRules) -> str:
    """Hash of all that decides the bytes of a dataset; not of where anything lies."""
    content = [
        FORMAT_VERSION,
        rules.source,
        rules.split,
        [[file.bytes, file.xxh128] for file in files],
        rules.tokenizer_fingerprint,
        rules.max_bytes,
        rules.block_tokens,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
