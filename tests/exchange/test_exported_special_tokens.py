"""A team's own special tokens leave with the model, and come in again, with the ids they have."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from theirs import import_transformers
from tokenizer_folders import write

from lmscale.config.data import TokenizerConfig
from lmscale.errors import DataError
from lmscale.exchange.framing import Framing
from lmscale.exchange.gguf_tokenizer import plan_vocabulary
from lmscale.exchange.import_tokenizer import read_tokenizer
from lmscale.exchange.render_config import barred_ids
from lmscale.exchange.tokenizer_check import HARD_TEXTS, load_theirs, verify_tokenizer
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.byte_bpe import train_byte_bpe
from lmscale.tokenizer.own import OwnTokenizer
from lmscale.tokenizer.train import train_model

import_transformers()
OWN = ("<|im_start|>", "<|im_end|>", "class", '<a,"b c">', "<工具>", "<fim_prefix>")
TEXTS = [topics[name] for name in sorted(topics)][:8]
TEXT = "a <|im_start|>class in<|im_end<工具> <|reserved_special_token_1|>"


@pytest.fixture(scope="module", params=["bpe", "unigram", "byte_bpe"])
def tokenizer(request: Any) -> Tokenizer:
    config = TokenizerConfig(
        kind=request.param, vocab_size=800, special_tokens=OWN, reserved_tokens=2
    )
    if config.kind == "byte_bpe":
        return train_byte_bpe(iter(TEXTS), config, {})
    return OwnTokenizer(train_model(iter(TEXTS), config), {"kind": config.kind})


@pytest.fixture
def framing(tokenizer: Tokenizer) -> Framing:
    return Framing(
        roles={f"{role}_token": number for role, number in tokenizer.special_ids.items()}
    )


def test_transformers_has_the_same_special_tokens_and_takes_their_names_for_them(
    tokenizer, framing, tmp_path
):
    write(tokenizer, tmp_path, framing)
    check = verify_tokenizer(tokenizer, tmp_path, TEXTS[:2], framing=framing)
    assert (check.texts, check.problem) == (len(HARD_TEXTS) + 3 + 2, "")
    theirs = load_theirs(tmp_path)
    ids = theirs(TEXT, add_special_tokens=False).input_ids
    assert ids == tokenizer.encode(TEXT, special=True).tolist()
    assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    as_text = theirs(TEXT, add_special_tokens=False, split_special_tokens=True).input_ids
    assert as_text == tokenizer.encode(TEXT).tolist()
    again = read_tokenizer(tmp_path)
    assert again.special_pieces == tokenizer.special_pieces
    assert again.encode(TEXT).tolist() == as_text or tokenizer.kind == "unigram"


def test_a_file_in_which_one_is_another_or_a_piece_of_text_is_refused(tokenizer, framing, tmp_path):
    write(tokenizer, tmp_path, framing)
    path: Path = tmp_path / "tokenizer.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["added_tokens"] = [t for t in tree["added_tokens"] if t["content"] != "<|im_end|>"]
    path.write_text(json.dumps(tree))
    check = verify_tokenizer(tokenizer, tmp_path, [], framing=framing)
    assert "<|im_end|> is no special token" in check.problem


def test_those_that_an_objective_has_are_barred_and_the_others_may_be_learned(tokenizer, framing):
    mark = tokenizer.special_tokens["<fim_prefix>"]
    barred = {*barred_ids(tokenizer, framing, {"prefix": mark, "suffix": 800}, 804)}
    ends = {number for role, number in tokenizer.special_ids.items() if role != "eos"}
    assert barred == {mark, *range(800, 804), *ends}


def test_in_a_gguf_file_they_are_control_tokens(tokenizer):
    if tokenizer.kind == "unigram":
        with pytest.raises(DataError, match="it is not BPE"):
            plan_vocabulary(tokenizer, {}, num_rows=800)
        return
    vocabulary = plan_vocabulary(tokenizer, {}, num_rows=800)
    for piece, number in tokenizer.special_tokens.items():
        assert (vocabulary.tokens[number], vocabulary.types[number]) == (piece, 3)
