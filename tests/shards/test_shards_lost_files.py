"""A file that was lost after a build is built again by the same command, and one that has changed
goes into nothing that is made of it.
"""

from __future__ import annotations

import json

import pytest

from lmscale.config import parse_config
from lmscale.corpus.build import build_corpus
from lmscale.errors import DataError
from lmscale.shards import slices
from lmscale.shards.build import build_shards
from lmscale.shards.verify import verify_dataset
from lmscale.tokenizer.train import train_tokenizer


def build_all(tmp_path):
    raw = tmp_path / "raw.jsonl"
    if not raw.exists():
        texts = (f"Document {n}: {'words and 文字 ' * 20}{n * n}" for n in range(200))
        raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = config_of(tmp_path, raw)
    corpus = build_corpus(config.corpus)
    train_tokenizer(config.tokenizer, tmp_path / "corpus", ["a"])
    (train, *_) = build_shards(config).built.values()
    return corpus.built["a"], train


def config_of(tmp_path, raw):
    return parse_config(
        f"""
        run: {{name: lost}}
        corpus: {{folder: {tmp_path}/corpus, sources: {{a: {{inputs: [{raw}]}}}}}}
        tokenizer: {{folder: {tmp_path}/tokenizer, vocab_size: 320}}
        shards: {{folder: {tmp_path}/shards, processes: 1}}
        """
    )


def test_a_lost_shard_is_built_again_and_the_dataset_is_the_same(tmp_path):
    _, before = build_all(tmp_path)
    (shard, *_) = sorted(before.folder.glob("*.tar"))
    shard.unlink()
    _, again = build_all(tmp_path)
    assert again.is_new
    assert again.manifest.fingerprint == before.manifest.fingerprint
    assert verify_dataset(again.folder) == []


def test_a_lost_file_of_documents_is_built_again(tmp_path):
    build_all(tmp_path)
    (documents, *_) = sorted((tmp_path / "corpus" / "a" / "train").glob("*.jsonl"))
    content = documents.read_bytes()
    documents.unlink()
    source, _ = build_all(tmp_path)
    assert source.is_new
    assert documents.read_bytes() == content
    source, _ = build_all(tmp_path)
    assert not source.is_new


def test_a_changed_letter_of_a_document_goes_into_no_shard_and_no_tokenizer(tmp_path):
    build_all(tmp_path)
    (documents, *_) = sorted((tmp_path / "corpus" / "a" / "train").glob("*.jsonl"))
    documents.write_bytes(documents.read_bytes().replace(b"words and", b"wards and", 1))
    config = config_of(tmp_path, tmp_path / "raw.jsonl")
    told = rf"^{documents}: its content has changed since it was written: .*again with --force\.$"
    with pytest.raises(DataError, match=told):
        build_shards(config, force=True)
    with pytest.raises(DataError, match=told):
        train_tokenizer(config.tokenizer, tmp_path / "corpus", ["a"], force=True)


def test_shards_that_lack_a_document_of_the_corpus_are_no_dataset(tmp_path, monkeypatch):
    read_slice = slices.read_slice
    build_all(tmp_path)
    monkeypatch.setattr(slices, "read_slice", lambda *part: list(read_slice(*part))[1:])
    config = config_of(tmp_path, tmp_path / "raw.jsonl")
    config = config.model_copy(
        update={"shards": config.shards.model_copy(update={"folder": str(tmp_path / "other")})}
    )
    with pytest.raises(DataError, match="its shards hold .* documents of .* and .* has"):
        build_shards(config)
    assert not (tmp_path / "other" / "a" / "train").exists()
