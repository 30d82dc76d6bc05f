"""A tokenizer that loses text makes shards all the same, and its figures are of the documents."""

import json

import numpy as np
import pytest
from others import CHINESE, ENGLISH, train_wordpiece

from lmscale.config import RunConfig
from lmscale.corpus.build import build_corpus
from lmscale.evaluation.held_out import open_evaluation_sets
from lmscale.evaluation.perplexity import plan_evaluation
from lmscale.objective.token_kinds import token_kinds
from lmscale.shards.build import build_shards
from lmscale.shards.slices import _encode_parts, _find_word
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.importing import import_tokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    root = tmp_path_factory.mktemp("lossy")
    texts = [text[:900] for text in ENGLISH] + [f"{text}\u2581 😀  ½" for text in CHINESE]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (root / "raw.jsonl").write_text(lines, encoding="utf-8")
    (root / "bert.json").write_text(train_wordpiece().to_str(), encoding="utf-8")
    import_tokenizer(root / "bert.json", root / "tokenizer")
    return RunConfig.model_validate(
        {
            "run": {"name": "lossy", "folder": str(root / "run")},
            "corpus": {
                "folder": str(root / "corpus"),
                "sources": {"docs": {"inputs": [str(root / "raw.jsonl")]}},
                "heldout_fraction": 0.4,
            },
            "tokenizer": {"folder": str(root / "tokenizer"), "vocab_size": 900},
            "shards": {"folder": str(root / "shards"), "processes": 1},
            "stream": {
                "sequence_length": 24,
                "sources": {"docs": {"shards": str(root / "shards/docs/train")}},
                "cache": {"folder": str(root / "cache")},
            },
            "model": {"layers": 1, "width": 16, "heads": 2},
            "evaluation": {"sets": {"docs": str(root / "shards/docs/heldout")}},
        }
    )


@pytest.fixture(scope="module")
def tokenizer(config):
    return load_tokenizer(config.tokenizer.folder)


def test_bits_per_byte_are_of_the_documents_own_bytes(config, tokenizer, capsys):
    build_corpus(config.corpus, processes=1)
    capsys.readouterr()
    build_shards(config)
    told = capsys.readouterr().err
    assert "exact: no: its normalizer (BertNormalizer) changes text" in told
    assert (
        "Bits per byte are of the documents' bytes" in told and "two to three times as long" in told
    )
    dataset = open_evaluation_sets(config, tokenizer.fingerprint)["docs"]
    plan = plan_evaluation(config, tokenizer, max_windows=None)
    sizes = plan.bytes_of_ids(dataset)
    covered = 0.0
    for number in plan.window_numbers(dataset):
        arrays = plan.preparation.prepare(dataset.read([number])).arrays
        covered += sizes[plan.preparation.target_ids(arrays)].sum()
    dataset.close()
    # Every token of the set is a target once, as its documents begin with bos.
    assert round(covered) == dataset.manifest.text_bytes
    assert dataset.manifest.text_tokens == dataset.manifest.tokens - 2 * dataset.manifest.documents
    assert sizes[[tokenizer.eos_id, tokenizer.bos_id]].tolist() == [0, 0]
    assert sizes[tokenizer.unk_id] > 0  # it stands for text, whichever


def test_a_model_may_write_no_unknown_text_and_words_begin_where_the_tokenizer_says(tokenizer):
    assert tokenizer.is_text()[tokenizer.unk_id] and not tokenizer.is_writable()[tokenizer.unk_id]
    kinds = token_kinds(tokenizer)
    number, *rest = tokenizer.encode("unaccustomedness").tolist()
    assert kinds.begins_word[number] and rest and not kinds.begins_word[rest].any()
    special = {role: kinds.is_special[number] for role, number in tokenizer.special_ids.items()}
    assert special == {"unk": False, "bos": True, "eos": True}


def test_a_word_or_a_part_that_the_tokenizer_drops_has_a_place_all_the_same(config, tokenizer):
    class OfPairs:
        members = ("parts",)

    encode = _encode_parts(tokenizer, OfPairs())  # pyright: ignore[reportArgumentType]
    assert len(tokenizer.encode("\u200b")) == 0
    assert encode("\u200b").tolist() == [tokenizer.unk_id]
    assert encode("a").tolist() == tokenizer.encode("a").tolist()
    assert _find_word(tokenizer.encode("  word"), 2, tokenizer) == 0
    assert np.array_equal(tokenizer.encode("  word"), tokenizer.encode("word"))
