"""Tiny datasets: documents of known tokens in real shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lmscale.config.data import StreamConfig
from lmscale.shards.manifest import Manifest, save_manifest
from lmscale.shards.writer import Documents, TokenizedDocument, write_shard
from lmscale.stream.batches import Rows

EOS, PAD = 2, 3


class Window(NamedTuple):
    """One sample of some rows, with the starts of its documents in the window."""

    tokens: np.ndarray
    starts: np.ndarray
    length: int


def split_windows(rows: Rows) -> list[Window]:
    heads = np.arange(len(rows.tokens)) * rows.tokens.shape[1]
    starts = np.split(rows.starts, np.searchsorted(rows.starts, heads[1:]))
    return [
        Window(tokens, starts[row] - row * len(tokens), int(rows.lengths[row]))
        for row, tokens in enumerate(rows.tokens)
    ]


@pytest.fixture
def windows_of():
    return split_windows


def make_documents(count: int, *, seed: int, longest: int = 60) -> list[np.ndarray]:
    """Documents of 1 to ``longest`` + 1 tokens, each ending in eos."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest + 1, count)
    return [np.append(random.integers(4, 900, length), EOS) for length in lengths]


def _write_dataset(
    folder: Path,
    documents: Sequence[np.ndarray],
    *,
    shard_documents: int = 40,
    block_tokens: int = 200,
    tokenizer: str = "f" * 64,
    dtype: str = "uint16",
    bos_id: int | None = None,
) -> Path:
    """``documents``: the ids of each, bos and eos included."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = Manifest(
        source=folder.name,
        split="train",
        tokenizer_fingerprint=tokenizer,
        vocab_size=900 if dtype == "uint16" else 100_000,
        dtype=dtype,
        bos_id=bos_id,
        eos_id=EOS,
        pad_id=PAD,
        block_tokens=block_tokens,
        inputs="",
        shards=(),
    )
    shards = []
    for number, begin in enumerate(range(0, len(documents), shard_documents)):
        name = f"x-{number:06d}.tar"
        tokenized = (
            TokenizedDocument(ids=ids.astype(dtype), text_bytes=len(ids), offset=0)
            for ids in documents[begin : begin + shard_documents]
        )
        key = f"x-{number:06d}"
        shards.append(
            write_shard(
                folder / name,
                name=name,
                key=key,
                documents=Documents(tokenized),
                dataset=dataset,
                max_bytes=2**30,
            )
        )
    save_manifest(replace(dataset, shards=tuple(shards)), folder)
    return folder


@pytest.fixture
def write_dataset():
    return _write_dataset


@pytest.fixture
def documents():
    return make_documents


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets: a (5 shards), b (3 shards), tiny (one document)."""
    folder = tmp_path_factory.mktemp("data")
    _write_dataset(folder / "a", make_documents(200, seed=1))
    _write_dataset(folder / "b", make_documents(90, seed=2))
    _write_dataset(folder / "tiny", [np.array([5, 6, 7, EOS])])
    return folder


@pytest.fixture
def stream_config(data: Path, tmp_path: Path):
    """Build a StreamConfig over some of the datasets, for example ``stream_config(a=3, b=1)``."""

    def build(*, folder: Path = data, packing: str = "concat", settings=None, **weights: float):
        sources = {
            name: {"shards": str(folder / name), "weight": weight}
            for name, weight in weights.items()
        }
        return StreamConfig.model_validate(
            {
                "sources": sources,
                "sequence_length": 32,
                "packing": packing,
                "window_shards": 2,
                "mixture_block": 64,
                "cache": {"folder": str(tmp_path / "cache"), "retries": 1},
            }
            | (settings or {})
        )

    return build
