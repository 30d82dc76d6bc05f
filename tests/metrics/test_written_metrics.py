"""Figures of texts agree with sacrebleu's and, where that is right, with rouge_score's."""

from __future__ import annotations

import sys

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lmscale.errors import ConfigError
from lmscale.metrics.written import (
    choose_tokenization,
    count_common,
    rouge_l,
    score_written,
    split_words,
)

ASCII = st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=40)
WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "."]), max_size=12)
TEXTS = st.one_of(ASCII, WORDS.map(" ".join), st.text("今天气很好真a b。，", max_size=16))


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_bleu_and_chrf_are_sacrebleus_to_the_last_digit(pairs):
    written, wanted = map(list, zip(*pairs, strict=True))
    for tokenization in ("13a", "zh", "char"):
        score = score_written(written, wanted, tokenization)
        bleu = sacrebleu.corpus_bleu(written, [wanted], tokenize=tokenization, force=True)
        assert score.bleu == bleu.score
        assert score.chrf == sacrebleu.corpus_chrf(written, [wanted]).score
        assert f"|tok:{tokenization}|" in score.bleu_signature


@given(ASCII | WORDS.map(" ".join), ASCII | WORDS.map(" ".join))
@settings(max_examples=300, deadline=None)
def test_rouge_l_of_ascii_is_rouge_scores_to_the_last_digit(written, wanted):
    theirs = RougeScorer(["rougeL"]).score(wanted, written)["rougeL"].fmeasure
    assert rouge_l(written, wanted) == theirs


def test_rouge_l_counts_chinese_characters_where_rouge_score_gives_0():
    written, wanted = "今天天气很好", "今天天气真好"
    assert RougeScorer(["rougeL"]).score(wanted, written)["rougeL"].fmeasure == 0
    assert rouge_l(written, wanted) == pytest.approx(5 / 6)
    assert rouge_l("Python 3.11 很好", "用 Python 3.11 吧") == pytest.approx(6 / 10)


def test_words_are_runs_of_letters_and_characters_of_scripts_without_spaces():
    assert split_words("Das Café, schön!") == ["das", "café", "schön"]
    assert split_words("cafe\u0301 a \u0301b") == ["cafe\u0301", "a", "\u0301b"]
    assert split_words("用GPU训练") == ["用", "gpu", "训", "练"]
    assert split_words("हिन्दी है") == ["हिन्दी", "है"]
    assert split_words("を使うか\u3099") == ["を", "使", "う", "か\u3099"]
    assert split_words("snake_case 3.5") == ["snake", "case", "3", "5"]


@given(st.text("abc", max_size=70), st.text("abc", max_size=70))
@settings(max_examples=100, deadline=None)
def test_the_longest_common_subsequence_is_that_of_the_table(first, second):
    row = [0] * (len(second) + 1)
    for ours in first:
        new = [0]
        for place, theirs in enumerate(second):
            new.append(row[place] + 1 if ours == theirs else max(row[place + 1], new[-1]))
        row = new
    assert count_common(list(first), list(second)) == row[-1]


@pytest.mark.parametrize(
    ("text", "tokenization"),
    [
        ("the cat sat on the mat", "13a"),
        ("今天天气很好，我们用 Python。", "zh"),
        ("今日はとても良い天気です", "char"),
        ("วันนี้อากาศดี", "char"),
        ("오늘 날씨가 좋다", "13a"),
        ("one word of 中文 in an English sentence", "13a"),
        ("12 + 3", "13a"),
        ("", "13a"),
    ],
)
def test_how_words_are_cut_follows_the_script_of_what_was_wanted(text, tokenization):
    assert choose_tokenization([text]) == tokenization
    assert score_written([text], [text]).bleu_signature.split("|")[3] == f"tok:{tokenization}"


def test_exact_matches_are_counted_but_for_white_space_at_the_ends():
    score = score_written(["a b", " a c\n", "A d", ""], ["a b", "a c", "a d", "x"])
    assert (score.exact, score.texts, score.exact_match) == (2, 4, 50.0)
    assert score.rouge_l == pytest.approx(75)
    assert score.to_json()["exact_match"] == 50.0


def test_a_missing_sacrebleu_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[written\]' -c constraints.txt"):
        score_written(["a"], ["a"])
