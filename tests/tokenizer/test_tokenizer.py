"""Any Unicode text comes back as it was, training is deterministic, and mistakes are explained."""

import hashlib
import io
import json
import pickle
import pydoc_data.topics
import resource
import subprocess
import sys
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config.corpus import CorpusConfig
from lmscale.config.data import TokenizerConfig
from lmscale.corpus.build import build_corpus
from lmscale.errors import ConfigError, DataError
from lmscale.tokenizer.codec import load_tokenizer, render_meta, save_tokenizer
from lmscale.tokenizer.own import OwnTokenizer, cut_before_words
from lmscale.tokenizer.train import sample_passages, train_model, train_tokenizer

ENGLISH = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)][:30]
CHINESE = [
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？",
]
AWKWARD = [
    "",
    " ",
    "   two   runs   ",
    "\n\n\n",
    "line\r\nline\ttab\x00nul\x1besc\x7f",
    "\u2581",
    " \u2581 \u2581\u2581x\u2581",
    "\u2585 SiP's own unknown mark",
    "<s>hello</s><unk><pad><0x0A><0xFF>",
    "<s>",
    "</s>",
    "\ufeffbom \ufffd replacement \ufffe",
    "e\u0301 \u00e9 ﬁ Ａ ①",
    "👩‍👩‍👧‍👦 \U0010ffff",
    "中文和 English 混排，1234567890。",
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    config = TokenizerConfig(kind=request.param, vocab_size=1200)
    return OwnTokenizer(train_model(iter(ENGLISH + CHINESE * 20), config), {"kind": request.param})


# Mostly the characters that SentencePiece, or a careless decoder, treats in ways of its own.
characters = st.one_of(
    st.sampled_from(" \u2581\u2585\u2047\n\r\t\x00<>/s0xAunk_中文é\u0301\ufeff\u2028\U0001f600"),
    st.characters(exclude_categories=["Cs"]),
)


@settings(deadline=None, max_examples=150)
@given(text=st.one_of(st.text(characters, max_size=60), st.sampled_from(AWKWARD)))
def test_any_text_comes_back_and_its_bytes_add_up(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert not np.isin(ids, list(tokenizer.special_ids.values())).any()


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, *ids.tolist(), 2, 3]) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_every_character_of_unicode_comes_back(tokenizer):
    for first in range(0, 0x110000, 0x1000):
        if first not in range(0xD000, 0xE000):
            text = " a".join(map(chr, range(first, first + 0x1000)))
            assert tokenizer.decode(tokenizer.encode(text)) == text
    text = "".join(map(chr, [*range(0xD000, 0xD800)]))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encoding_in_stretches_gives_the_ids_of_the_whole(tokenizer):
    whole = tokenizer._processor.encode
    for text in [
        *ENGLISH,
        "\n".join(ENGLISH),
        "a    b  c " * 500,
        " " * 9000,
        "".join(CHINESE) * 60,
    ]:
        stretches = list(cut_before_words(text))
        assert "".join(stretches) == text
        ids, whole_ids = tokenizer.encode(text).tolist(), whole(text)
        if tokenizer.made_by["kind"] == "bpe":
            assert ids == whole_ids
        else:  # its float32 path scores tie here and there over a long text
            assert abs(len(ids) - len(whole_ids)) <= len(whole_ids) / 1000
    lines = "\n".join(CHINESE) * 200  # no spaces: cut after newlines
    assert 4 < len(list(cut_before_words(lines))) < 10
    assert tokenizer.decode(tokenizer.encode(lines)) == lines


def test_english_and_chinese_get_pieces_of_their_own(tokenizer):
    english, chinese = ENGLISH[3], CHINESE[0]
    assert len(english.encode()) / len(tokenizer.encode(english)) > 2.0
    assert len(chinese) / len(tokenizer.encode(chinese)) >= 1.0  # bytes would make it a third


def test_special_ids_and_byte_pieces_are_where_the_format_says(tokenizer):
    specials = [tokenizer.piece(number) for number in range(4)]
    assert specials == ["<unk>", "<s>", "</s>", "<pad>"]
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == np.int32
    assert sizes.shape == (tokenizer.vocab_size,)
    assert sizes[:4].tolist() == [0, 0, 0, 0]
    assert sizes[4:].min() == 1
    assert tokenizer.decode_bytes(range(4, 260)) == bytes(range(256))


def test_special_ids_are_what_the_model_says_and_one_without_eos_or_that_changes_text_is_refused():
    """Mistral's has no pad, and its byte pieces begin at 3."""

    exact = {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    }

    def train(**changes: Any) -> bytes:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(ENGLISH[:5]),
            model_writer=model,
            model_type="bpe",
            vocab_size=400,
            byte_fallback=True,
            max_sentence_length=10**6,
            minloglevel=3,
            **(exact | changes),
        )
        return model.getvalue()

    tokenizer = OwnTokenizer(train(unk_id=0, bos_id=2, eos_id=1, pad_id=-1), {})
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 1, None)
    assert render_meta(tokenizer)["special_ids"] == {"unk": 0, "bos": 2, "eos": 1}
    assert tokenizer.piece(3) == "<0x00>"
    assert (tokenizer.token_bytes()[:4] == [0, 0, 0, 1]).all()
    assert OwnTokenizer(train(bos_id=-1), {}).bos_id is None
    with pytest.raises(DataError, match="no piece for the end of a document"):
        OwnTokenizer(train(eos_id=-1), {})
    for change in ({"normalization_rule_name": "nmt_nfkc"}, {"add_dummy_prefix": True}):
        with pytest.raises(DataError, match="changes text.*lmscale tokenizer import"):
            OwnTokenizer(train(**change), {})


def test_a_description_under_the_old_name_is_read_until_it_is_written_anew(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "meta.json").rename(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    save_tokenizer(tokenizer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "tokenizer.model"]


def test_a_tokenizer_of_hugging_face_is_told_and_never_removed(tokenizer, tmp_path):
    theirs = tmp_path / "tokenizer.json"
    theirs.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE"}}))
    with pytest.raises(
        DataError, match="tokenizer.json is a tokenizer of Hugging Face's.*lmscale tokenizer import"
    ):
        load_tokenizer(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    assert theirs.exists() and load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_generated_bytes_that_are_not_utf8_decode_to_replacement_characters(tokenizer):
    lead = tokenizer.encode("\U0010ffff")[:2]
    assert tokenizer.decode(lead) == "\ufffd"


def test_ids_of_another_tokenizer_and_lone_surrogates_are_explained(tokenizer):
    with pytest.raises(DataError, match="Token id 1200 is outside the tokenizer's 1,200"):
        tokenizer.decode([5, 1200])
    with pytest.raises(DataError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\ud800")


def test_a_tokenizer_crosses_to_another_process_whole(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert (copy.encode("Hello 世界") == tokenizer.encode("Hello 世界")).all()


def test_more_than_65536_pieces_need_uint32(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "vocab_size", 65_536)
    assert tokenizer.dtype == np.uint16
    monkeypatch.setattr(tokenizer, "vocab_size", 65_537)
    assert tokenizer.dtype == np.uint32


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_of_text_without_a_space_knows_spaces(kind):
    model = train_model(CHINESE * 20, TokenizerConfig(kind=kind, vocab_size=335))
    tokenizer = OwnTokenizer(model, {"kind": kind})
    assert tokenizer.decode(tokenizer.encode(" 中 文\u2581 ")) == " 中 文\u2581 "


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_gives_the_same_bytes_on_any_number_of_cores(kind):
    program = f"""
import hashlib, os, pydoc_data.topics, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
from lmscale.config.data import TokenizerConfig
from lmscale.tokenizer.train import train_model
texts = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)][:20]
model = train_model(iter(texts), TokenizerConfig(kind={kind!r}, vocab_size=800))
print(hashlib.sha256(model).hexdigest())
"""
    runs = [
        subprocess.run([sys.executable, "-c", program, cores], capture_output=True, text=True)
        for cores in ("1", "64")
    ]
    assert runs[0].stdout == runs[1].stdout != ""
    assert runs[0].stderr == ""  # SentencePiece has a lot to say


def test_the_sample_is_even_and_bounded():
    texts = [f"document {number} " + "x" * 500 for number in range(1000)]
    total = sum(map(len, texts))
    assert list(sample_passages(texts, total_bytes=total, max_bytes=total)) == texts
    sample = list(sample_passages(texts, total_bytes=total, max_bytes=total // 10))
    numbers = [int(text.split()[1]) for text in sample]
    assert sum(map(len, sample)) <= total // 10
    assert len(numbers) in (99, 100)
    assert set(np.diff(numbers).tolist()) <= {9, 10, 11}


def test_one_long_document_is_sampled_in_passages():
    text = "\n".join(f"line {number} of one long document" for number in range(10_000))
    passages = list(sample_passages([text], total_bytes=len(text), max_bytes=len(text)))
    assert "\n".join(passages) == text
    sample = list(sample_passages([text], total_bytes=len(text), max_bytes=len(text) // 4))
    assert 0.8 * len(text) / 4 < sum(map(len, sample)) <= len(text) / 4
    no_lines = "世界" * 50_000
    assert "".join(sample_passages([no_lines], total_bytes=1, max_bytes=10**9)) == no_lines


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_that_does_not_fit_is_explained_with_the_size_that_does(kind):
    with pytest.raises(DataError, match="vocab_size = 50,000 is more.*at most") as caught:
        train_model(iter(ENGLISH[:3]), TokenizerConfig(kind=kind, vocab_size=50_000))
    fits = int(str(caught.value).split("at most ")[1].split()[0].replace(",", ""))
    config = TokenizerConfig(kind=kind, vocab_size=fits)
    assert OwnTokenizer(train_model(iter(ENGLISH[:3]), config), {}).vocab_size == fits
    letters = "".join(map(chr, range(0x4E00, 0x4F00)))
    with pytest.raises(DataError, match=r"at most \d+ pieces fit\. Train on more text\.$"):
        train_model(iter(["ab ab"] * 3), TokenizerConfig(kind=kind, vocab_size=300))
    with pytest.raises(DataError, match="is too small: .* Set tokenizer.vocab_size to more than"):
        train_model(iter([letters] * 3), TokenizerConfig(kind=kind, vocab_size=300))
    with pytest.raises(DataError, match="holds no text"):
        train_model(iter([]), config)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ENGLISH))
    config = CorpusConfig.model_validate(
        {
            "folder": str(tmp_path / "corpus"),
            "sources": {"s": {"inputs": [f"{tmp_path}/raw.jsonl"]}},
        }
    )
    build_corpus(config)
    return tmp_path / "corpus"


def test_a_trained_tokenizer_is_kept_and_one_trained_otherwise_needs_force(tmp_path, corpus):
    config = TokenizerConfig(folder=str(tmp_path / "tokenizer"), vocab_size=600)
    trained = train_tokenizer(config, corpus, ["s"])
    meta = json.loads((tmp_path / "tokenizer" / "meta.json").read_text())
    assert meta["fingerprint"] == trained.fingerprint == load_tokenizer(config.folder).fingerprint
    assert meta["special_ids"] == {"unk": 0, "bos": 1, "eos": 2, "pad": 3}
    before = (tmp_path / "tokenizer" / "tokenizer.model").stat()
    assert train_tokenizer(config, corpus, ["s"]).fingerprint == trained.fingerprint
    assert (tmp_path / "tokenizer" / "tokenizer.model").stat() == before
    other = config.model_copy(update={"vocab_size": 700})
    with pytest.raises(DataError, match=r"trained otherwise \(other vocab_size\)"):
        train_tokenizer(other, corpus, ["s"])
    assert train_tokenizer(other, corpus, ["s"], force=True).vocab_size == 700


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path, corpus):
    config = TokenizerConfig(folder=str(tmp_path / "tokenizer"), vocab_size=600)
    with pytest.raises(DataError, match="there is no tokenizer here"):
        load_tokenizer(config.folder)
    train_tokenizer(config, corpus, ["s"])
    model = tmp_path / "tokenizer" / "tokenizer.model"
    content = bytearray(model.read_bytes())
    content[1000] ^= 1
    model.write_bytes(content)
    with pytest.raises(DataError, match="tokenizer.model: its sha256 is not the fingerprint"):
        load_tokenizer(config.folder)
    for content in (b"nonsense", b""):
        model.write_bytes(content)
        meta = {"fingerprint": hashlib.sha256(content).hexdigest(), "made_by": {}}
        (tmp_path / "tokenizer" / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(DataError, match="tokenizer.model: (Not a|The) SentencePiece model"):
            load_tokenizer(config.folder)
    with pytest.raises(ConfigError, match="names no source"):
        train_tokenizer(config, corpus, [])
    with pytest.raises(DataError, match="lmscale corpus build"):
        train_tokenizer(config, tmp_path / "elsewhere", ["s"])


@contextmanager
def file_size_limit(size):
    """Writing past ``size`` bytes fails with EFBIG, as a full disk does; Python ignores SIGXFSZ."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_is_an_error_and_keeps_the_old_tokenizer(tmp_path, corpus):
    config = TokenizerConfig(folder=str(tmp_path / "tokenizer"), vocab_size=600)
    old = train_tokenizer(config, corpus, ["s"])
    other = config.model_copy(update={"vocab_size": 700})
    with file_size_limit(1000), pytest.raises(DataError, match="No space is left.*tokenizer"):
        train_tokenizer(other, corpus, ["s"], force=True)
    assert load_tokenizer(config.folder).fingerprint == old.fingerprint
    names = sorted(path.name for path in (tmp_path / "tokenizer").iterdir())
    assert names == ["meta.json", "tokenizer.model"]
    new = config.model_copy(update={"folder": str(tmp_path / "new")})
    with file_size_limit(1000), pytest.raises(DataError, match="No space is left.*new"):
        train_tokenizer(new, corpus, ["s"])
    assert not (tmp_path / "new").exists()
