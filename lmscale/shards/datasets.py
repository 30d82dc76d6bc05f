"""Which datasets a configuration stands for, how each is cut, and whether it is there already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmscale.config import RunConfig
from lmscale.corpus import load_corpus_manifest
from lmscale.corpus.documents import SPLITS, DocumentFile, document_paths
from lmscale.errors import ConfigError, DataError
from lmscale.files.atomic import have_sizes, write_json_once, writing
from lmscale.shards.manifest import Manifest, load_manifest
from lmscale.shards.plan import Slice, build_key, expect_bytes, plan_slices
from lmscale.shards.writer import ShardRules
from lmscale.tasks.array_tasks import SharedBuild
from lmscale.tokenizer import Tokenizer

SLICES = "slices.json"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset to build. ``rank`` is its number among those that go together."""

    final: Path
    documents: Path  # the folder of the document files
    files: tuple[DocumentFile, ...]
    rules: ShardRules
    key: str
    rank: int

    def build(self, slices: Sequence[Slice] = ()) -> SharedBuild:
        sizes = tuple(part.end - part.start for part in slices)
        return SharedBuild(final=self.final, key=self.key, sizes=sizes, rank=self.rank)


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """A dataset and the slices of its corpus, each a unit of work."""

    dataset: Dataset
    slices: tuple[Slice, ...]
    build: SharedBuild

    @property
    def parts(self) -> Path:
        """Where finished shards and their records are."""
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


def plan_dataset(dataset: Dataset, tokenizer: Tokenizer, *, keep: bool) -> DatasetPlan:
    """``keep`` writes the slices down, so that every task and every later build has the same."""
    path = dataset.build().work / SLICES
    if path.exists():
        rows = json.loads(path.read_bytes())
    else:
        slices = plan_slices(
            sum(file.bytes for file in dataset.files),
            expected_bytes=expect_bytes(dataset.documents, dataset.files, tokenizer),
            max_bytes=dataset.rules.max_bytes,
        )
        rows = [vars(part) for part in slices]
        if keep:
            with writing("the plan of the shards", dataset.final.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = write_json_once(path, rows)
    slices = tuple(Slice(**row) for row in rows)
    return DatasetPlan(dataset=dataset, slices=slices, build=dataset.build(slices))


def existing_manifest(dataset: Dataset, problems: list[str], *, force: bool) -> Manifest | None:
    """The manifest of a finished build of the same; one of something else is a problem.

    Where a shard is lost, the dataset is built again.
    """
    final, rules = dataset.final, dataset.rules
    if not final.exists():
        return None
    try:
        manifest = load_manifest(final)
    except DataError as error:
        problems.append(f"{final} exists and is no dataset: {error} Name another shards.folder.")
        return None
    if manifest.inputs == dataset.key:
        is_whole = have_sizes((final / entry.name, entry.bytes) for entry in manifest.shards)
        return manifest if is_whole else None
    if force:
        return None
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
    return None
