"""A run's tokenizer, as transformers loads its exported files."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from theirs import import_transformers
from tiny_run import tiny_tree
from tokenizer_folders import CHINESE, PLAIN, TEXTS, tree_of, write

from lmscale.config import RunConfig
from lmscale.config.data import TokenizerConfig
from lmscale.errors import ConfigError, DataError
from lmscale.exchange.framing import Framing, plan_framing
from lmscale.exchange.tokenizer_check import (
    HARD_TEXTS,
    encode_as_text,
    load_theirs,
    verify_tokenizer,
)
from lmscale.tokenizer.base import SPLITS, Tokenizer
from lmscale.tokenizer.own import OwnTokenizer
from lmscale.tokenizer.train import train_model

import_transformers()
VOCAB = 1000


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: Any) -> Tokenizer:
    config = TokenizerConfig(kind=request.param, vocab_size=VOCAB)
    return OwnTokenizer(train_model([*TEXTS[:12], *CHINESE * 20], config), {"kind": request.param})


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return load_theirs(folder)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return OwnTokenizer(train_model(TEXTS[:3], TokenizerConfig(vocab_size=512)), {"kind": "bpe"})


characters = st.one_of(
    st.sampled_from(" \u2581\u2585\u2047\n\r\t\x00<>/[]s0xAMunk_中文é\u0301\ufeff\u2028\U0001f600"),
    st.characters(exclude_categories=["Cs"]),
)
words = st.sampled_from([*HARD_TEXTS, "<s>", "</s>", "<0x41>", "    ", " the", "self.", "明月"])


@settings(deadline=None, max_examples=150)
@given(text=st.lists(st.one_of(words, st.text(characters, max_size=12)), max_size=6).map("".join))
def test_any_text_has_the_same_ids_and_comes_back(tokenizer, theirs, text):
    ours, given = tokenizer.encode(text).tolist(), encode_as_text(theirs, text)
    assert theirs.decode(ours) == theirs.decode(given) == text
    if tokenizer.kind == "bpe":
        assert given == ours
    else:  # of cuts that are equally likely another may be chosen
        assert score(tokenizer, given) >= score(tokenizer, ours) - 1e-3


def score(tokenizer: Tokenizer, ids: list[int]) -> float:
    """Of unigram, the sum of the pieces' log-probabilities, bytes being all alike."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    return sum(-30.0 if processor.is_byte(each) else processor.get_score(each) for each in ids)


def test_whole_documents_have_the_same_ids_and_the_share_of_those_that_do_not_is_told(
    tokenizer, folder
):
    check = verify_tokenizer(tokenizer, folder, TEXTS[:40], framing=PLAIN)
    assert (check.texts, check.undecoded, check.problem) == (40 + len(HARD_TEXTS), 0, "")
    if tokenizer.kind == "bpe":
        assert check.describe() == (
            f"the same ids for all of {check.texts} texts; names of special tokens, such as </s>, "
            "are text in lmscale and those tokens in transformers (2 of the texts), but with "
            "split_special_tokens=True"
        )
    else:
        assert check.differing_tokens <= check.tokens / 1000
        assert f"of {check.tokens:,} tokens" in check.describe()


def test_special_tokens_in_a_text_are_tokens_as_in_others_tools_unless_their_own_settings_say_not(
    small, tmp_path
):
    text = "a</s>"
    write(small, tmp_path)
    theirs = load_theirs(tmp_path)
    assert theirs("a" + theirs.eos_token).input_ids == [*small.encode("a").tolist(), 2]
    write(small, tmp_path, added_ids={"mask": 512})
    assert load_theirs(tmp_path)(f"{text}[MASK]").input_ids[-2:] == [2, 512]
    split = OwnTokenizer(small.model, {"kind": "bpe", SPLITS: True})
    write(split, tmp_path)
    assert load_theirs(tmp_path)(text).input_ids == small.encode(text).tolist()
    assert (
        "split_special_tokens"
        not in verify_tokenizer(split, tmp_path, [], framing=PLAIN).describe()
    )


def test_a_text_without_names_of_special_tokens_has_to_have_the_same_ids_in_any_case(
    small, tmp_path
):
    write(small, tmp_path)
    tree = tree_of(tmp_path)
    extra = dict(tree["added_tokens"][0], id=512, content="3.14159")
    tree["added_tokens"].append(extra)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    check = verify_tokenizer(small, tmp_path, [], framing=PLAIN)
    assert (check.with_names, check.strayed, check.problem) == (3, 0, "")
    strayed = replace(check, strayed=1).problem
    assert "1 texts without names of special tokens get other ids unless split_" in strayed


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert", "mistral", "t5", "qwen3"])
def test_beside_a_model_of_any_architecture_it_is_the_same(small, model_type, tmp_path):
    write(small, tmp_path, chat_template="{{ messages }}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert (tmp_path / "tokenizer.model").read_bytes() == small.model
    assert not verify_tokenizer(small, tmp_path, TEXTS[:3], framing=PLAIN).problem
    theirs = load_theirs(tmp_path)
    assert (theirs.bos_token, theirs.model_max_length) == (None, 64)
    assert theirs.chat_template == "{{ messages }}"


def test_where_transformers_builds_another_tokenizer_than_the_files_say_the_check_names_it(
    tokenizer, tmp_path
):
    write(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    problem = verify_tokenizer(tokenizer, tmp_path, TEXTS[:1], framing=PLAIN).problem
    assert "beside this config.json it builds a Qwen2Tokenizer, not what the files say" in problem


FRAMES: dict[str, tuple[dict[str, Any], list, list]] = {
    "causal": ({}, ["bos", "A"], ["bos", "A", "B"]),
    "masked": (
        {"model": {"family": "encoder"}, "objective": {"name": "masked"}},
        ["bos", "A", "eos"],
        ["bos", "A", "B", "eos"],
    ),
    "masked_order": (
        {
            "model": {"family": "encoder", "pooler": True, "text_classes": 2, "token_types": 2},
            "objective": {"name": "masked_order"},
            "stream": {"mask_documents": False},
        },
        ["[CLS]", "A", "[SEP]"],
        ["[CLS]", "A", "[SEP]", "B", "[SEP]"],
    ),
    "spans": (
        {
            "model": {"family": "encoder_decoder"},
            "objective": {"name": "spans"},
            "stream": {"mask_documents": False},
        },
        ["bos", "A", "eos", "<|end|>"],
        ["bos", "A", "B", "eos", "<|end|>"],
    ),
    "pairs": (
        {
            "model": {"family": "encoder_decoder"},
            "objective": {"name": "pairs"},
            "stream": {"packing": "best_fit"},
        },
        ["A", "<|end|>"],
        ["A", "B", "<|end|>"],
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_around_a_text_stands_what_the_model_was_trained_on(small, name, tmp_path):
    changes, single, pair = FRAMES[name]
    tree = tiny_tree(tmp_path, tmp_path / "run")
    tree |= {key: value for key, value in changes.items() if key != "stream"}
    tree["stream"] |= changes.get("stream", {})
    config = RunConfig.model_validate(tree)
    framing = plan_framing(config, small, begins_with_bos=True)
    write(small, tmp_path, framing, added_ids=config.added_ids)
    theirs = load_theirs(tmp_path)

    def ids(parts: list[str]) -> list[int]:
        texts = {"A": small.encode("one two").tolist(), "B": small.encode("3").tolist()}
        named = {"bos": [1], "eos": [2]}
        return [
            each
            for part in parts
            for each in texts.get(part) or named.get(part) or [theirs.convert_tokens_to_ids(part)]
        ]

    assert theirs("one two").input_ids == ids(single)
    assert theirs("one two", "3").input_ids == ids(pair)
    if name == "masked_order":
        types = theirs("one two", "3").token_type_ids
        assert types == [0] * (len(types) - 2) + [1, 1]
        assert (theirs.cls_token, theirs.sep_token) == ("[CLS]", "[SEP]")
    ends = config.added_ids.get("end", 2)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, ends, 3)
    assert theirs.mask_token_id == config.added_ids.get("mask")
    assert not verify_tokenizer(small, tmp_path, [], framing=framing).problem
    without = plan_framing(config, small, begins_with_bos=False)
    assert 1 not in without.before
    assert "bos_token" not in without.roles


def test_added_ids_have_their_usual_names_and_their_own_numbers(tokenizer, tmp_path):
    names = ("start", "end", "mode_S", "mask", "prefix", "sentinel_0", "sentinel_1")
    added = {name: VOCAB + 2 + place for place, name in enumerate(names)}
    write(tokenizer, tmp_path, added_ids=added)
    theirs = load_theirs(tmp_path)
    assert theirs.convert_ids_to_tokens(range(VOCAB, VOCAB + 9)) == [
        *("<|unused_1000|>", "<|unused_1001|>", "<|start|>", "<|end|>", "[S2S]", "[MASK]"),
        *("<fim_prefix>", "<extra_id_0>", "<extra_id_1>"),
    ]
    assert len(theirs) == VOCAB + 9
    with pytest.raises(DataError, match=r"The ids of mask are also ids of the tokenizer"):
        write(tokenizer, tmp_path, added_ids={"mask": 3})


def test_the_files_are_written_without_the_libraries_that_read_them(
    tokenizer, folder, tmp_path, monkeypatch
):
    for name in ("tokenizers", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    write(tokenizer, tmp_path)
    assert tree_of(tmp_path) == tree_of(folder)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[hf\]'"):
        load_theirs(tmp_path)


def test_files_that_give_other_ids_texts_or_frames_are_refused(tokenizer, tmp_path):
    write(tokenizer, tmp_path)
    tree = tree_of(tmp_path)
    if tokenizer.kind == "bpe":
        tree["model"]["merges"].reverse()
        expected = r"texts get other ids\. Such as '"
    else:
        tree["decoder"] = None
        expected = r"texts come back otherwise\. Such as '"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    check = verify_tokenizer(tokenizer, tmp_path, TEXTS[:2], framing=PLAIN)
    assert re.search(expected, check.problem)
    other = Framing(before=(1,), roles={"bos_token": 1, "eos_token": 3})
    problem = verify_tokenizer(tokenizer, tmp_path, [], framing=other).problem
    assert "bos_token is None, not 1; eos_token is 2, not 3; a text becomes [" in problem
