"""Two texts are the same by one definition, for duplicates and for what is held out."""

import json
import tracemalloc
import unicodedata
from itertools import chain, pairwise, repeat

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus import clean
from lmscale.corpus.build import build_corpus
from lmscale.corpus.clean import Sameness, cut_stretches, digest_of, normalize, split_text, with_lf
from lmscale.corpus.documents import read_documents

# Line ends, white space, what composes with what is before it, and what nothing composes with.
TEXTS = st.text(
    alphabet="ae=\r\n \u3000é\u0301\u0338\u0323かが\u3099가\u1100\u1161世ﬁﾞ。", max_size=60
)
WHITE = st.text(alphabet="\r\n \t\u3000\u2028", max_size=4)


@given(TEXTS, WHITE, WHITE, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["NFC", "NFD"]))
def test_line_ends_outer_white_space_and_normal_form_make_no_difference(
    text, before, after, line_end, form
):
    text = with_lf(text).strip()
    other = before + unicodedata.normalize(form, text).replace("\n", line_end) + after
    assert digest_of(other) == digest_of(text)


@given(TEXTS, TEXTS)
def test_texts_that_differ_otherwise_are_not_the_same(one, two):
    canonical = [unicodedata.normalize("NFC", with_lf(text)).strip() for text in (one, two)]
    assume(canonical[0] != canonical[1])
    assert digest_of(one) != digest_of(two)


@pytest.fixture(scope="module")
def short_stretches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "STRETCH_CHARS", 3)
        patch.setattr(clean, "MOST_STRETCHES", 1000)
        yield


@given(st.lists(TEXTS, max_size=5), st.integers(1, 20), st.sampled_from(["NFC", "NFKC"]))
def test_what_is_done_to_the_stretches_is_done_to_the_text(short_stretches, pieces, most, form):
    text = "".join(pieces)
    stretches = list(cut_stretches(pieces))
    assert "".join(stretches) == text
    done = [normalize(with_lf(stretch), form) for stretch in stretches]
    assert "".join(done) == normalize(with_lf(text), form)
    assert Sameness(stretches).digest == Sameness([text]).digest
    assert Sameness(stretches).chars == Sameness([text]).chars
    assert list(split_text(stretches, most)) == list(split_text([text], most))


@pytest.mark.parametrize("char", [" ", "\r", "\n", "Ж", "\u0301", "…"])
def test_a_text_of_any_length_is_compared_in_bounded_memory(monkeypatch, char):
    monkeypatch.setattr(clean, "STRETCH_CHARS", 1 << 10)
    monkeypatch.setattr(clean, "MOST_STRETCHES", 16)
    tracemalloc.start()
    same = Sameness(cut_stretches(chain("a", repeat(char * 997, 4000), "b")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert same.all_chars == 2 + 997 * 4000
    assert peak < 500_000


@given(st.sampled_from(["Ж", "\u0301", "\r\n"]), st.lists(st.integers(0, 60), max_size=4))
def test_where_a_text_is_cut_depends_on_no_piece_of_it(char, ends):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "STRETCH_CHARS", 2)
        patch.setattr(clean, "MOST_STRETCHES", 3)
        text, ends = char * 30, sorted(ends)
        pieces = [text[a:b] for a, b in pairwise([0, *ends, len(text)])]
        assert list(cut_stretches(pieces)) == list(cut_stretches([text]))


def build(tmp_path, texts, **changes):
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tree = {"folder": str(tmp_path / "c"), "sources": {"s": {"inputs": [str(raw)]}}}
    manifest = build_corpus(CorpusConfig.model_validate(tree | changes)).built["s"].manifest
    return manifest, [
        list(read_documents(tmp_path / "c/s" / each)) for each in ("train", "heldout")
    ]


@pytest.mark.parametrize("drop", [True, False])
def test_no_copy_of_a_heldout_document_is_in_the_training_part(tmp_path, drop):
    texts = [f"é, line\nof text {number}\nthe end" for number in range(200)]
    copies = [text.replace("\n", "\r\n") + "\n" for text in texts]
    copies += [unicodedata.normalize("NFD", f"  {text}\n\n") for text in texts]
    manifest, (train, heldout) = build(
        tmp_path,
        texts + copies,
        heldout_fraction=0.2,
        drop_exact_duplicates=drop,
        normalization="none",
    )
    same = [
        {unicodedata.normalize("NFC", text.strip()) for text in part} for part in (train, heldout)
    ]
    assert same[0] | same[1] == set(texts) and not same[0] & same[1]
    assert manifest.dropped == ({"duplicate": 400} if drop else {})
    assert manifest.line_ends == 200


def test_line_ends_become_lf_and_are_counted_unless_they_are_kept(tmp_path):
    texts = ["a\r\nb", "a\rb\r\rc", "a\nb\nc"]
    manifest, (train, _) = build(tmp_path, texts, heldout_fraction=0)
    assert (train, manifest.line_ends) == (["a\nb", "a\nb\n\nc", "a\nb\nc"], 2)
    (tmp_path / "keep").mkdir()
    manifest, (train, _) = build(tmp_path / "keep", texts, heldout_fraction=0, line_ends="keep")
    assert (train, manifest.line_ends) == (texts, 0)
