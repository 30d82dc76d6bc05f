"""What the tests of the shards share."""

import json
import random
from pathlib import Path

import pytest

from lmscale.config import RunConfig
from lmscale.corpus.build import build_corpus
from lmscale.tokenizer.train import train_tokenizer

# webdataset closes its files by garbage collection.
webdataset_leaks = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


def with_shards(config, folder, **changes):
    section = config.shards.model_copy(update={"folder": str(folder), **changes})
    return config.model_copy(update={"shards": section})


def small_base(folder, *, num_texts=100):
    """A corpus (of eight shards) and a tokenizer, for tests that build them many times."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(200)]
    texts = [" ".join(draw.choices(words, k=300)) for _ in range(num_texts)]
    (folder / "raw.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    config = RunConfig.model_validate(
        {
            "run": {"name": "t"},
            "corpus": {
                "folder": str(folder / "corpus"),
                "sources": {"topics": {"inputs": [str(folder / "raw.jsonl")]}},
                "heldout_fraction": 0.1,
            },
            "tokenizer": {"folder": str(folder / "tokenizer"), "vocab_size": 300},
            "shards": {"max_bytes": 2**16, "block_tokens": 4096, "processes": 1},
        }
    )
    build_corpus(config.corpus)
    train_tokenizer(config.tokenizer, config.corpus.folder, ["topics"])
    return config


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def rewrite(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))
