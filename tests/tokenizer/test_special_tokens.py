"""A team's own special tokens have ids that are known, and no text becomes one."""

import json
import pickle
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config import RunConfig
from lmscale.config.corpus import CorpusConfig
from lmscale.config.data import TokenizerConfig
from lmscale.config.load import validate_tree
from lmscale.corpus.build import build_corpus
from lmscale.errors import ConfigError, DataError
from lmscale.shards.build import build_shards
from lmscale.shards.manifest import load_manifest
from lmscale.shards.reader import open_shard
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.byte_bpe import train_byte_bpe
from lmscale.tokenizer.codec import load_configured, load_tokenizer, save_tokenizer
from lmscale.tokenizer.hugging_face import HuggingFaceTokenizer
from lmscale.tokenizer.named_ids import find_own_ids
from lmscale.tokenizer.own import OwnTokenizer
from lmscale.tokenizer.showing import render_tokenizer
from lmscale.tokenizer.train import train_model, train_tokenizer
from lmscale.train.run_tokenizer import load_run_tokenizer

ENGLISH = [topics[name] for name in sorted(topics)][:10]
# Words among them, which a corpus is full of, and what a CSV or a pattern would take for its own.
OWN = (
    "<|im_start|>",
    "<|im_end|>",
    "class",
    '<a,"b c">',
    "<工具>",
    "TOOLCALL",
    "<|im_end|>!",
    "in",
)
TEXTS = [*ENGLISH, *([f"TOOLCALL class {' '.join(OWN)}\nclass TOOLCALL <|im_start|>"] * 40)]
SETTINGS = {"vocab_size": 900, "special_tokens": OWN, "reserved_tokens": 2}
KINDS = ["bpe", "unigram", "byte_bpe"]


def train(kind: str, texts: list[str] = TEXTS, **changes) -> Tokenizer:
    config = TokenizerConfig(kind=kind, **(SETTINGS | changes))
    if kind == "byte_bpe":
        return train_byte_bpe(iter(texts), config, {"kind": kind})
    return OwnTokenizer(train_model(iter(texts), config), {"kind": kind})


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request) -> Tokenizer:
    return train(request.param)


def test_special_tokens_follow_the_ends_of_a_document_in_the_order_of_the_list(tokenizer):
    names = [*OWN, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    first = 3 if tokenizer.kind == "byte_bpe" else 4
    assert tokenizer.special_tokens == {name: first + place for place, name in enumerate(names)}
    assert {*tokenizer.special_pieces.values()} == {*range(first + len(names))}
    assert tokenizer.vocab_size == 900 and tokenizer.is_exact
    assert not tokenizer.is_writable()[: first + len(names)].any()
    if isinstance(tokenizer, HuggingFaceTokenizer):  # and none of them is kept out by cutting text
        assert tokenizer.rules["pre_tokenizer"] == json.loads(tokenizer.model)["pre_tokenizer"]
    assert pickle.loads(pickle.dumps(tokenizer)).special_tokens == tokenizer.special_tokens


parts = st.sampled_from([each[:end] for each in OWN for end in (1, -1, None)])
names = st.sampled_from([*OWN, "<s>", "</s>", "<unk>", "<|end_of_text|>", "<|pad|>", "<0x0A>"])
reserved = st.sampled_from(["<|reserved_special_token_1|>", "<|reserved_special_token_2|>"])
characters = st.one_of(st.sampled_from(" ▁\n<|>é\u0301"), st.characters(exclude_categories=["Cs"]))
texts = st.lists(st.one_of(names, parts, reserved, st.text(characters, max_size=4)), max_size=8)


@settings(deadline=None, max_examples=150)
@given(text=texts.map("".join))
def test_a_text_that_reads_like_them_is_text_unless_it_is_meant(tokenizer, text):
    special = list(tokenizer.special_pieces.values())
    ids = tokenizer.encode(text)
    assert not np.isin(ids, special).any()
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    meant = tokenizer.encode(text, special=True)
    assert tokenizer.decode_bytes(meant, shows_special=True).decode() == text
    has_name = any(name in text for name in tokenizer.special_pieces)
    assert np.isin(meant, special).any() == has_name


def test_a_token_that_is_meant_stands_between_texts_of_their_own(tokenizer):
    start, end = (tokenizer.special_tokens[name] for name in OWN[:2])
    text = tokenizer.encode("user\nhello").tolist()
    ids = tokenizer.encode("<|im_start|>user\nhello<|im_end|>", special=True)
    assert ids.tolist() == [start, *text, end]
    assert tokenizer.decode(ids) == "user\nhello"
    longest = tokenizer.special_tokens["<|im_end|>!"]
    assert tokenizer.encode("<|im_end|>!", special=True).tolist() == [longest]


def test_what_a_folder_says_of_them_is_shown_and_has_to_be_what_its_model_says(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))
    assert meta["special_tokens"] == tokenizer.special_tokens
    assert load_tokenizer(tmp_path).special_tokens == tokenizer.special_tokens
    first = tokenizer.special_tokens["<|im_start|>"]
    shown = render_tokenizer(tokenizer)
    assert f"<|im_start|>={first} <|im_end|>={first + 1} " in shown
    assert f"2 reserved ({first + 8} to {first + 9})" in shown
    meta["special_tokens"]["<|im_start|>"] = 500
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="special_tokens are not those of tokenizer"):
        load_tokenizer(tmp_path)


def test_an_objective_s_ids_among_them_are_known_by_their_usual_names():
    marks = ["<fim_suffix>", "<x>", "<fim_prefix>", "<fim_middle>", "[MASK]"]
    assert find_own_ids(train("bpe", ENGLISH[:3], special_tokens=marks)) == {
        **{"mask": 8, "prefix": 6, "suffix": 4, "middle": 7}
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_mistake_in_the_list_is_told_at_once(kind):
    wrong = ["", " a", "x", "<a>", "a\u200bb", "e\u0301x", "<a>", "<|reserved_special_token_1|>"]
    ends = "<|pad|>" if kind == "byte_bpe" else "<s>"
    more = [] if kind == "byte_bpe" else ["<0x0A>", "a▁b"]
    section = {"kind": kind, "special_tokens": [*wrong, ends, *more], "reserved_tokens": 40}
    tree = {"run": {"name": "a"}, "tokenizer": {"vocab_size": 300, **section}}
    with pytest.raises(ConfigError) as caught:
        validate_tree(RunConfig, tree, name="a.yaml")
    said = "\n".join(caught.value.problems)
    for expected in (
        "special_tokens[0] = '' is empty",
        "special_tokens[1] = ' a' has white space",
        "special_tokens[2] = 'x' is a single character",
        "special_tokens[4] = 'a\\u200bb' holds U+200B, a format character",
        "('e\\u0301x') is not in Unicode's form NFC; write '\\xe9x'",
        "special_tokens has '<a>' 2 times",
        "'<|reserved_special_token_1|>', which reserved_tokens = 40 makes, too",
        f"special_tokens[8] = '{ends}' is a piece that every tokenizer of this kind has",
        "vocab_size = 300 leaves no piece for text: 256 bytes, ",
    ):
        assert expected in said
    assert len(caught.value.problems) == 9 + len(more)


@pytest.fixture
def corpus(tmp_path) -> str:
    (tmp_path / "raw.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:14]), encoding="utf-8"
    )
    sources = {"s": {"inputs": [f"{tmp_path}/raw.jsonl"]}}
    tree = {"folder": str(tmp_path / "corpus"), "sources": sources, "heldout_fraction": 0.0}
    build_corpus(CorpusConfig.model_validate(tree))
    return tree["folder"]


def test_other_special_tokens_are_another_tokenizer_and_none_is_the_one_from_before(
    corpus, tmp_path
):
    plain = TokenizerConfig(folder=str(tmp_path / "tokenizer"), vocab_size=600)
    made_by = train_tokenizer(plain, corpus, ["s"]).made_by
    assert not {"special_tokens", "reserved_tokens"} & {*made_by}
    config = plain.model_copy(update={"special_tokens": ("<a>",), "reserved_tokens": 1})
    with pytest.raises(DataError, match=r"no special token <a> and 1 more, as tokenizer\.special"):
        load_configured(config)
    with pytest.raises(DataError, match=r"\(other reserved_tokens, special_tokens\)"):
        train_tokenizer(config, corpus, ["s"])
    trained = train_tokenizer(config, corpus, ["s"], force=True)
    assert load_configured(config).fingerprint == trained.fingerprint
    with pytest.raises(DataError, match=r"\(other reserved_tokens, special_tokens\)"):
        train_tokenizer(plain, corpus, ["s"])


def test_no_document_brings_a_special_token_into_the_shards(corpus, tmp_path):
    folders = {name: str(tmp_path / name) for name in ("tokenizer", "shards")}
    tree = {
        "run": {"name": "a"},
        "corpus": {"folder": corpus, "sources": {"s": {"inputs": ["raw.jsonl"]}}},
        "tokenizer": {"folder": folders["tokenizer"], **SETTINGS},
        "shards": {"folder": folders["shards"]},
    }
    config = validate_tree(RunConfig, tree, name="a.yaml")
    tokenizer = train_tokenizer(config.tokenizer, corpus, ["s"])
    build_shards(config, processes=1)
    place = tmp_path / "shards" / "s" / "train"
    manifest = load_manifest(place)
    shard = open_shard(place / manifest.shards[0].name, manifest.shards[0], manifest.dtype)
    tokens = shard.tokens(0)
    assert {*np.intersect1d(tokens, [*tokenizer.special_pieces.values()])} == {1, 2}  # bos and eos
    documents = [tokenizer.decode(part) for part in np.split(tokens, shard.docs(0)[1:-1])]
    assert TEXTS[-1] in documents
    named = config.tokenizer.model_copy(update={"special_tokens": (*OWN, "<other>")})
    for use in (build_shards, load_run_tokenizer):
        with pytest.raises(DataError, match="no special token <other>, as"):
            use(config.model_copy(update={"tokenizer": named}))
