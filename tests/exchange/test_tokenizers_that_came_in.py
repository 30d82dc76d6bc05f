"""A tokenizer of another program's, as it goes out again with a run's ids and frame."""

from __future__ import annotations

import importlib
import io
import json
from dataclasses import replace
from typing import Any

import pytest
import sentencepiece
from theirs import import_transformers
from tokenizer_folders import CHINESE, TEXTS, tree_of, write

from lmscale.exchange.framing import Framing, keep_pair
from lmscale.exchange.tokenizer_check import load_theirs, verify_tokenizer
from lmscale.tokenizer.foreign import SentencePieceTokenizer
from lmscale.tokenizer.hugging_face import HuggingFaceTokenizer, build, parse_tree

import_transformers()


def wordpiece() -> HuggingFaceTokenizer:
    """As BERT's is, with what saved ones often have."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    library.train_from_iterator([*TEXTS[:4], *CHINESE], trainer)
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    library.enable_truncation(16)
    library.enable_padding(length=16)
    return HuggingFaceTokenizer(library.to_str().encode(), {}, {"bos": 2, "eos": 3, "pad": 0})


def byte_level() -> HuggingFaceTokenizer:
    """As GPT-2's is, with an added token that is not special, and a post-processor of its own."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS[:4], trainer)
    library.add_tokens(["<extra>"])
    return HuggingFaceTokenizer(library.to_str().encode(), {}, {"bos": 0, "eos": 0})


def sentencepiece_bpe(**rules: Any) -> SentencePieceTokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS[:6] for line in text.splitlines()]),
        model_writer=model,
        model_type="bpe",
        minloglevel=3,
        **rules,
    )
    return SentencePieceTokenizer(model.getvalue(), {})


@pytest.mark.parametrize("make", [wordpiece, byte_level])
def test_a_tokenizer_json_that_came_in_goes_out_with_the_ids_and_the_frame_of_the_run(
    make, tmp_path
):
    tokenizer = make()
    special = tokenizer.special_ids
    mask = tokenizer.vocab_size
    framing = Framing(
        before=(special["bos"],),
        after=(special["eos"],),
        roles={f"{role}_token": number for role, number in special.items()} | {"mask_token": mask},
    )
    write(tokenizer, tmp_path, framing, added_ids={"mask": mask})
    check = verify_tokenizer(tokenizer, tmp_path, [*TEXTS[:4], "an <extra> one"], framing=framing)
    assert (check.problem, check.differing, check.undecoded) == ("", 0, 0)
    theirs = load_theirs(tmp_path)
    name = "<|mask|>" if make is wordpiece else "[MASK]"  # the former has a [MASK] of its own
    assert theirs.convert_ids_to_tokens(mask) == theirs.mask_token == name
    long = " ".join(["statement"] * 40)
    assert theirs(long).input_ids == framing.frame(tokenizer.encode(long).tolist())
    kept = framing if make is wordpiece else Framing(roles={})
    nothing_read = Framing(is_known=False, roles={})
    write(tokenizer, tmp_path, nothing_read)
    assert load_theirs(tmp_path)(long).input_ids == kept.frame(tokenizer.encode(long).tolist())


def test_a_pair_template_that_came_in_is_kept_where_one_text_stands_as_the_run_has_it(tmp_path):
    tokenizer = wordpiece()
    library = build(parse_tree(tokenizer.model))
    processors = importlib.import_module("tokenizers").processors
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = HuggingFaceTokenizer(library.to_str().encode(), {}, tokenizer.special_ids)
    trained = Framing(before=(2,), after=(3,), has_types=True, roles={"eos_token": 3})
    framing = keep_pair(trained, tokenizer)
    write(tokenizer, tmp_path, framing)
    assert verify_tokenizer(tokenizer, tmp_path, [], framing=framing).problem == ""
    a, b = (tokenizer.encode(text).tolist() for text in "ab")
    theirs = load_theirs(tmp_path)("a", "b")
    assert theirs.input_ids == [2, *a, 3, *b, 3]
    assert theirs.token_type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    other = replace(trained, after=())
    assert keep_pair(other, tokenizer) is other


def test_another_program_s_sentencepiece_model_may_differ_and_is_told(tmp_path):
    tokenizer = sentencepiece_bpe(vocab_size=400, normalization_rule_name="nfkc")
    framing = Framing(roles={"eos_token": 2})
    write(tokenizer, tmp_path, framing)
    # The library tokenizers loses a mark behind a character of a compatibility form.
    check = verify_tokenizer(tokenizer, tmp_path, ["\u00bd\u0301"], framing=framing)
    assert (check.differing, check.problem) == (1, "")
    assert f"other ids for 1 of {check.texts} texts" in check.describe()
    tree = tree_of(tmp_path)
    tree["model"]["merges"] = tree["model"]["merges"][:9]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    problem = verify_tokenizer(tokenizer, tmp_path, TEXTS[:2], framing=framing).problem
    assert "tokens have other ids, and up to 5% may" in problem


def test_what_is_wrong_in_every_text_is_no_exception_of_a_few(tmp_path):
    rules = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    tokenizer = sentencepiece_bpe(vocab_size=700, byte_fallback=True, **rules)
    framing = Framing(roles={})
    write(tokenizer, tmp_path, framing)
    assert not verify_tokenizer(tokenizer, tmp_path, TEXTS[:9], framing=framing).problem
    tree = tree_of(tmp_path)
    for step in tree["normalizer"]["normalizers"]:
        if step["type"] == "Prepend":
            step["prepend"] = "\u2581\u2581"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    problem = verify_tokenizer(tokenizer, tmp_path, TEXTS[:9], framing=framing).problem
    assert "texts get other ids, and up to 10% may" in problem
