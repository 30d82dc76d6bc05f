"""Answers are scored as the official scripts of SQuAD and CMRC 2018 score them."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmscale.metrics.answers import add_scores, score_answer, segment

WORDS = [
    "a",
    "An",
    "the",
    "The cat",
    "cat",
    "cat's",
    "U.S.",
    "—",
    "théâtre",
    "42",
    "!",
    " ",
    "\n",
    "-",
]
SIGNS = [
    "北京",
    "京",
    "上海",
    "，",
    "。",
    "…",
    "·",
    "《红楼梦》",
    "1999",
    "年",
    "iPhone",
    " ",
    "‘",
    "’",
]
english = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
chinese = st.lists(st.sampled_from(SIGNS), max_size=7).map("".join)


# SQuAD's evaluate-v2.0.py, as its authors wrote it, function by function.
def normalize_answer(s):
    def remove_articles(text):
        regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
        return re.sub(regex, " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def squad_f1(a_gold, a_pred):
    gold_toks = normalize_answer(a_gold).split() if a_gold else []
    pred_toks = normalize_answer(a_pred).split() if a_pred else []
    common = Counter(gold_toks) & Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


# CMRC 2018's cmrc2018_evaluate.py, with words in place of NLTK's.
SP_CHAR = [
    *["-", ":", "_", "*", "^", "/", "\\", "~", "`", "+", "="],
    *["，", "。", "：", "？", "！", "“", "”", "；", "’", "《", "》", "……", "·", "、"],
    *["「", "」", "（", "）", "－", "～", "『", "』", "…"],
]


def mixed_segmentation(in_str):
    segs_out, temp_str = [], ""
    for char in in_str.lower().strip():
        if char in SP_CHAR:
            continue
        if re.search("[\u4e00-\u9fa5]", char):
            if temp_str != "":
                segs_out.extend(re.findall(r"\w+|[^\w\s]", temp_str))
                temp_str = ""
            segs_out.append(char)
        else:
            temp_str += char
    if temp_str != "":
        segs_out.extend(re.findall(r"\w+|[^\w\s]", temp_str))
    return segs_out


def find_lcs(s1, s2):
    m = [[0 for i in range(len(s2) + 1)] for j in range(len(s1) + 1)]
    mmax = 0
    for i in range(len(s1)):
        for j in range(len(s2)):
            if s1[i] == s2[j]:
                m[i + 1][j + 1] = m[i][j] + 1
                if m[i + 1][j + 1] > mmax:
                    mmax = m[i + 1][j + 1]
    return mmax


@settings(max_examples=150, deadline=None)
@given(english, st.lists(english, max_size=3))
@example("", [])
@example("the", ["a"])
def test_words_are_scored_as_by_the_script_of_squad(found, wanted):
    gold = [each for each in wanted if normalize_answer(each)] or [""]
    score = score_answer(found, wanted, "words")
    assert score.exact == max(
        int(normalize_answer(each) == normalize_answer(found)) for each in gold
    )
    assert score.f1 == max(squad_f1(each, found) for each in gold)


@settings(max_examples=150, deadline=None)
@given(chinese, st.lists(chinese, min_size=1, max_size=3))
def test_characters_are_scored_as_by_the_script_of_cmrc(found, wanted):
    def bare(text):
        return "".join(char for char in text.lower().strip() if char not in SP_CHAR)

    gold = [each for each in wanted if bare(each).strip()] or [""]
    best = 0.0
    for each in gold:
        ours, theirs = mixed_segmentation(found), mixed_segmentation(each)
        length = find_lcs(theirs, ours)
        if length:
            precision, recall = 1.0 * length / len(ours), 1.0 * length / len(theirs)
            best = max(best, (2 * precision * recall) / (precision + recall))
    if gold == [""] and not mixed_segmentation(found):
        best = 1.0  # where the script divides by zero: there is no answer, and none was found
    score = score_answer(found, wanted, "characters")
    assert score.exact == max(int(bare(each) == bare(found)) for each in gold)
    assert score.f1 == best


def test_what_both_call_the_same_and_where_they_differ():
    assert score_answer("The Beatles!", ["beatles"], "words").exact == 1
    assert score_answer("in 1999", ["1999"], "words").f1 == pytest.approx(2 / 3)
    # Without spaces a sentence is one word: only what counts characters sees the half.
    chinese = "北京", ["北京市"]
    assert score_answer(*chinese, "words").f1 == 0
    assert score_answer(*chinese, "characters").f1 == pytest.approx(4 / 5)
    assert segment("《iPhone 6》在2014年") == ["iphone", "6", "在", "2014", "年"]


def test_no_answer_is_one_and_sums_keep_their_count():
    none, missed, invented = (
        score_answer(found, wanted, "words")
        for found, wanted in (("", []), ("", ["Paris"]), ("Paris", []))
    )
    assert [each.exact for each in (none, missed, invented)] == [1, 0, 0]
    total = add_scores([none, missed, invented])
    assert (total.exact, total.f1, total.count) == (1, 1, 3)
