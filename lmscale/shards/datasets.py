"""Which datasets a configuration stands for, and the slices that each is cut into."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from lmscale.config import RunConfig
from lmscale.corpus import load_corpus_manifest
from lmscale.corpus.documents import SPLITS, DocumentFile, document_paths
from lmscale.errors import ConfigError
from lmscale.files.atomic import write_json_once, writing
from lmscale.shards.plan import Slice, build_key, expect_bytes, plan_slices
from lmscale.shards.writer import ShardRules
from lmscale.tasks.array_tasks import SharedBuild
from lmscale.tokenizer import Tokenizer

SLICES = "slices.json"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset to build. ``rank`` is its number among the datasets of the configuration."""

    final: Path
    documents: Path  # the folder of the document files
    files: tuple[DocumentFile, ...]
    rules: ShardRules
    key: str
    rank: int
    slices: tuple[Slice, ...] = ()  # of the corpus, each a unit of work; empty until planned

    @property
    def build(self) -> SharedBuild:
        sizes = tuple(part.bytes for part in self.slices)
        return SharedBuild(final=self.final, key=self.key, sizes=sizes, rank=self.rank)

    @property
    def parts(self) -> Path:
        """Folder of the finished shards and their records."""
        return self.build.work / "parts"


def find_datasets_to_build(config: RunConfig, tokenizer: Tokenizer) -> list[Dataset]:
    """Train and heldout of every source; a split without documents has none."""
    if not config.corpus.sources:
        raise ConfigError("corpus.sources: names no source; there is nothing to make shards of.")
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
                Dataset(
                    final=Path(config.shards.folder) / source / split,
                    documents=corpus / split,
                    files=files,
                    rules=rules,
                    key=build_key(manifest, split, tokenizer, config.shards),
                    rank=len(datasets),
                )
            )
    return datasets


def cut_dataset(dataset: Dataset, tokenizer: Tokenizer, *, keep: bool) -> Dataset:
    """The dataset with its slices. ``keep`` writes the slices down, for all tasks."""
    work = dataset.build.work
    if (work / SLICES).exists():
        rows = json.loads((work / SLICES).read_bytes())
    else:
        slices = plan_slices(
            sum(file.bytes for file in dataset.files),
            expected_bytes=expect_bytes(dataset.documents, dataset.files, tokenizer),
            max_bytes=dataset.rules.max_bytes,
        )
        rows = [vars(part) for part in slices]
        if keep:
            with writing("the plan of the shards", dataset.final.parent):
                work.mkdir(parents=True, exist_ok=True)
                rows = write_json_once(work / SLICES, rows)
    return replace(dataset, slices=tuple(Slice(**row) for row in rows))
