"""Found answers beside those that people gave: exact match and F1, as two data sets score them.

``words``: as SQuAD's official script (Rajpurkar et al. 2016; 2.0: 2018), which is for English.
``characters``: as that of CMRC 2018 (Cui et al. 2019), for Chinese among which there may be other
words. Of several answers the one that fits best counts, and "" is that there is none.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Unit = Literal["words", "characters"]

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
# CMRC 2018's own list, "……" being one of its signs twice.
_LEFT_OUT = frozenset("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")  # noqa: RUF001
_IDEOGRAPH = re.compile("[\u4e00-\u9fa5]")
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class AnswerScore:
    """Of one answer, or the sums of several and their count, which may be added."""

    exact: float
    f1: float
    count: int = 1

    def __add__(self, other: AnswerScore) -> AnswerScore:
        return AnswerScore(
            exact=self.exact + other.exact, f1=self.f1 + other.f1, count=self.count + other.count
        )


NO_ANSWERS = AnswerScore(exact=0.0, f1=0.0, count=0)


def score_answer(found: str, wanted: Sequence[str], unit: Unit) -> AnswerScore:
    """The best of its scores, from 0 to 1, by each of the answers ``wanted``; by none of them: of
    "", that there is none.
    """
    reduce, overlap = _RULES[unit]
    answers = [answer for answer in wanted if reduce(answer).strip()] or [""]
    return AnswerScore(
        exact=float(any(reduce(found) == reduce(answer) for answer in answers)),
        f1=max(overlap(found, answer) for answer in answers),
    )


def normalize_words(text: str) -> str:
    """In lower case, without ASCII's punctuation and English articles, and with single spaces."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def normalize_characters(text: str) -> str:
    """In lower case and without CMRC's signs."""
    return "".join(each for each in text.lower().strip() if each not in _LEFT_OUT)


def segment(text: str) -> list[str]:
    """Every ideograph by itself, and the words of what stands between, without CMRC's signs.

    Those words are cut at white space and signs, where the official script has NLTK do it.
    """
    segments, other = [], ""
    for each in text.lower().strip():
        if each in _LEFT_OUT:
            continue
        if _IDEOGRAPH.match(each):
            segments += [*_WORD.findall(other), each]
            other = ""
        else:
            other += each
    return segments + _WORD.findall(other)


def _overlap_of_words(found: str, wanted: str) -> float:
    """F1 of two multisets of words; two without any are the same."""
    ours, theirs = normalize_words(found).split(), normalize_words(wanted).split()
    shared = (Counter(ours) & Counter(theirs)).total()
    return _f1(shared, len(ours), len(theirs))


def _overlap_of_characters(found: str, wanted: str) -> float:
    """F1 by the longest run of segments that stands in both."""
    ours, theirs = segment(found), segment(wanted)
    return _f1(_longest_run(ours, theirs), len(ours), len(theirs))


def _longest_run(one: Sequence[str], other: Sequence[str]) -> int:
    longest, row = 0, [0] * (len(other) + 1)
    for each in one:
        before, row = row, [0] * (len(other) + 1)
        for place, beside in enumerate(other):
            if each == beside:
                row[place + 1] = before[place] + 1
        longest = max(longest, *row)
    return longest


def _f1(shared: int, ours: int, theirs: int) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    precision, recall = shared / ours, shared / theirs
    return 2 * precision * recall / (precision + recall) if shared else 0.0


_RULES: dict[Unit, tuple[Callable[[str], str], Callable[[str, str], float]]] = {
    "words": (normalize_words, _overlap_of_words),
    "characters": (normalize_characters, _overlap_of_characters),
}


def add_scores(scores: Iterable[AnswerScore]) -> AnswerScore:
    return sum(scores, NO_ANSWERS)
