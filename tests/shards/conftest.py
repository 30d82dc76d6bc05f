"""One small corpus and tokenizer for all tests of the shards, and a dataset built of them."""

import json
import pydoc_data.topics
import shutil

import pytest
from shard_cases import with_shards

from lmscale.config import RunConfig
from lmscale.corpus.build import build_corpus
from lmscale.corpus.documents import read_documents
from lmscale.shards.build import build_shards
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.train import train_tokenizer

TOPICS = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A corpus and a tokenizer; the tests build shards of them in folders of their own."""
    folder = tmp_path_factory.mktemp("base")
    raw = folder / "raw.jsonl"
    texts = [*TOPICS, "一段中文文字。", "\u2581<s>\x00 tail \n"]
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = RunConfig.model_validate(
        {
            "run": {"name": "t"},
            "corpus": {
                "folder": str(folder / "corpus"),
                "sources": {"topics": {"inputs": [str(raw)]}},
                "heldout_fraction": 0.1,
            },
            "tokenizer": {"folder": str(folder / "tokenizer"), "vocab_size": 1000},
            "shards": {"max_bytes": 2**16, "block_tokens": 4096, "processes": 1},
        }
    )
    build_corpus(config.corpus)
    train_tokenizer(config.tokenizer, config.corpus.folder, ["topics"])
    return config


@pytest.fixture(scope="session")
def built(base, tmp_path_factory):
    """The folder that the shards of both parts were built in."""
    folder = tmp_path_factory.mktemp("built") / "shards"
    build_shards(with_shards(base, folder))
    return folder


@pytest.fixture
def dataset(built, tmp_path):
    """The folder of a built train part, the test's own."""
    shutil.copytree(built, tmp_path / "shards")
    return tmp_path / "shards" / "topics" / "train"


@pytest.fixture
def expected(base):
    """The token ids of each document of the train part, bos first and eos last."""
    tokenizer = load_tokenizer(base.tokenizer.folder)
    texts = read_documents(f"{base.corpus.folder}/topics/train")
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    return [[bos, *tokenizer.encode(text).tolist(), eos] for text in texts]
