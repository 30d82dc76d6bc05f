"""A dataset of given documents in lmscale's shards: what the loader's benchmarks read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmscale.shards.manifest import Manifest, save_manifest
from lmscale.shards.writer import Documents, TokenizedDocument, write_shard

EOS, PAD = 2, 3


def write_dataset(
    folder: Path, shards: Iterable[Iterable[np.ndarray]], *, vocab_size: int, block_tokens: int
) -> None:
    """``shards``: the documents of each, uint16 [tokens], which end with ``EOS``. ``folder`` is
    there.
    """
    dataset = Manifest(
        source="random",
        split="train",
        tokenizer_fingerprint="0" * 64,
        vocab_size=vocab_size,
        dtype="uint16",
        eos_id=EOS,
        pad_id=PAD,
        block_tokens=block_tokens,
        inputs="",
        shards=(),
    )
    entries = []
    for number, documents in enumerate(shards):
        key = f"random-{number:06d}"
        part = (TokenizedDocument(ids=ids, text_bytes=0, offset=0) for ids in documents)
        entries.append(
            write_shard(
                folder / f"{key}.tar",
                name=f"{key}.tar",
                key=key,
                documents=Documents(part),
                dataset=dataset,
                max_bytes=2**40,
            )
        )
    save_manifest(replace(dataset, shards=tuple(entries)), folder)
