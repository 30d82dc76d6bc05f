"""A small tokenizer and a small model, made once for the folder."""

from __future__ import annotations

import json
from pydoc_data.topics import topics

import pytest
import torch

from lmscale.config import RunConfig
from lmscale.config.model import DecoderConfig, Sizes
from lmscale.corpus.build import build_corpus
from lmscale.model.decoder import Decoder
from lmscale.model.family import build_model
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.train import train_tokenizer
from lmscale.train.initial import draw_weights, fill_weights

CHINESE = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。"
LENGTH = 24


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> RunConfig:
    """A run's configuration whose corpus, tokenizer and shards live in a temporary folder."""
    root = tmp_path_factory.mktemp("evaluation")
    texts = [text[:1200] for text in list(topics.values())[:30]] + [CHINESE]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (root / "raw.jsonl").write_text(lines, encoding="utf-8")
    return RunConfig.model_validate(
        {
            "run": {"name": "tiny", "folder": str(root / "run")},
            "corpus": {
                "folder": str(root / "corpus"),
                "sources": {"docs": {"inputs": [str(root / "raw.jsonl")]}},
                "heldout_fraction": 0.3,
            },
            "tokenizer": {"folder": str(root / "tokenizer"), "vocab_size": 400},
            "shards": {"folder": str(root / "shards"), "block_tokens": 1024, "processes": 1},
            "stream": {"sequence_length": LENGTH, "cache": {"folder": str(root / "cache")}},
            "batch": {"micro_windows": 4},
            "model": {"layers": 2, "width": 32, "heads": 4, "tied_embeddings": True},
            "engine": {"precision": "fp32"},
            "evaluation": {"sets": {"docs": str(root / "shards/docs/heldout")}},
        }
    )


@pytest.fixture(scope="session")
def tokenizer(config) -> Tokenizer:
    build_corpus(config.corpus, processes=1)
    return train_tokenizer(config.tokenizer, config.corpus.folder, ["docs"])


@pytest.fixture
def model() -> Decoder:
    config = DecoderConfig(layers=2, width=32, heads=4, init_std=0.2)
    model = build_model(config, Sizes(vocab_size=512, max_positions=LENGTH, sequence_length=LENGTH))
    fill_weights(model, draw_weights(1))
    return model.eval()
