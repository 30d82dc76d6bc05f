"""Build datasets from the corpus: tokenise slices, then number and list the shards.

One process builds all, with worker processes of its own, or the tasks of an array share the work:
the shards are the same, byte for byte (``lmscale.tasks`` says how). Unfinished shards lie in
``SHARDS/<source>/.<split>.building``. There each finished shard has a record with its size, hash
and the place where the next one begins, so a killed build goes on from its last shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig
from lmscale.files.atomic import writing
from lmscale.shards.datasets import Dataset, cut_dataset, find_datasets_to_build
from lmscale.shards.manifest import Manifest, load_manifest, render_manifest
from lmscale.shards.tasks import SliceTask, finished_shards
from lmscale.tasks.array_tasks import ArrayTask, Progress
from lmscale.tasks.building import Builder, BuildSummary
from lmscale.tasks.target import Move, Target, Unit
from lmscale.tokenizer import Tokenizer, load_tokenizer


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


def _builder(config: RunConfig, processes: int | None) -> Builder[Manifest]:
    tokenizer = load_tokenizer(config.tokenizer.folder)
    folder = Path(config.tokenizer.folder)
    datasets = find_datasets_to_build(config, tokenizer)
    return Builder(
        targets=[_target(dataset, tokenizer, folder) for dataset in datasets],
        title="shards",
        unit="bytes",
        processes=config.shards.processes if processes is None else processes,
    )


def _target(dataset: Dataset, tokenizer: Tokenizer, tokenizer_folder: Path) -> Target[Manifest]:
    """A dataset's folder, of shards that the slices of a corpus become."""

    def units(numbers: Iterable[int]) -> list[Unit]:
        with writing("shards", dataset.final):
            dataset.parts.mkdir(exist_ok=True)
        return [
            SliceTask(
                slice=dataset.slices[number],
                documents=dataset.documents,
                files=dataset.files,
                parts=dataset.parts,
                tokenizer_folder=tokenizer_folder,
                rules=dataset.rules,
            )
            for number in numbers
        ]

    def plan(keep: bool) -> Target[Manifest]:
        return _target(cut_dataset(dataset, tokenizer, keep=keep), tokenizer, tokenizer_folder)

    return Target(
        name=str(dataset.final),
        kind="dataset",
        what="shards",
        setting="shards.folder",
        build=dataset.build,
        parts=dataset.parts,
        contents=("*.tar",),
        load=load_manifest,
        key_of=lambda manifest: manifest.inputs,
        files_of=lambda manifest: ((entry.name, entry.bytes) for entry in manifest.shards),
        describe_difference=partial(_describe_difference, dataset),
        units=units,
        assemble=lambda processes: _assemble(dataset, tokenizer),
        plan=plan,
    )


def _describe_difference(dataset: Dataset, manifest: Manifest) -> str:
    fingerprint = dataset.rules.tokenizer_fingerprint
    if manifest.tokenizer_fingerprint == fingerprint:
        return "from other documents or with another shards.max_bytes or shards.block_tokens"
    return (
        f"with another tokenizer ({manifest.tokenizer_fingerprint[:12]}; this one is "
        f"{fingerprint[:12]})"
    )


def _assemble(dataset: Dataset, tokenizer: Tokenizer) -> tuple[dict[str, Any], list[Move]]:
    """The dataset's manifest, and the final place of each shard."""
    rules = dataset.rules
    parts = finished_shards(dataset.parts, dataset.slices)
    names = [f"{rules.source}-{number:06d}.tar" for number in range(len(parts))]
    manifest = Manifest(
        source=rules.source,
        split=rules.split,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=rules.dtype,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        block_tokens=rules.block_tokens,
        inputs=dataset.key,
        shards=tuple(replace(part, name=name) for part, name in zip(parts, names, strict=True)),
    )
    folder = dataset.parts.relative_to(dataset.build.folder)
    moves = [
        (str(folder / part.name), name, part.bytes) for part, name in zip(parts, names, strict=True)
    ]
    return render_manifest(manifest), moves
