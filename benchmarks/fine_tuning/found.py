"""Answers that stand in a context, found without a neural network.

``score_answers``: a logistic regression that says of every candidate whether it is the answer, by
what stands around it and in the question; the most similar sentence; and of the questions after
office holders a rule that knows how they were made, which is no model but the bound that their
form sets.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from descriptions import GAP, WORD
from letters import with_short_indices
from newspaper import QUESTION_END

Record = Mapping[str, Any]
Sides = Mapping[str, Sequence[Record]]
Figures = dict[str, float]
Features = dict[str, float]
Unit = Literal["words", "characters"]
STRENGTHS = (0.1, 1.0, 10.0)  # inverse of the L2 penalty, as LogisticRegression's C
NAME_CHARACTERS = range(2, 5)  # of a candidate for a name; longer ones are foreign and rare
NEAR = 12  # characters between a title and a candidate that are told apart


class Candidate(NamedTuple):
    text: str
    start: int
    features: Features


class Task(NamedTuple):
    candidates: Callable[[Record, Counter[str]], Iterator[Candidate]]
    unit: Unit  # of F1
    every: int = 1  # the regression learns from so many of the wrong candidates: each n-th


def score_answers(sides: Sides, how: Task) -> dict[str, Figures]:
    test = sides["test"]
    ways = {
        "logistic regression over candidates": regression(sides, how),
        "most similar sentence": [pick_sentence(r["question"], r["context"]) for r in test],
    }
    return {name: answer_figures(guesses, test, how.unit) for name, guesses in ways.items()}


def score_gaps(sides: Sides) -> dict[str, Figures]:
    return score_answers(sides, Task(word_candidates, "words"))


def score_offices(sides: Sides) -> dict[str, Figures]:
    test = sides["test"]
    length = Counter(len(r["answer"]) for r in sides["train"]).most_common(1)[0][0]
    rule = [cut_behind_title(record, length) for record in test]
    return score_answers(sides, Task(name_candidates, "characters", every=5)) | {
        f"rule: {length} characters behind the title": answer_figures(rule, test, "characters")
    }


def regression(sides: Sides, how: Task) -> list[str]:
    """The likeliest candidate of each test record. A text that is several candidates has the sum
    of their chances; of the strengths the one with the best F1 on validation is taken.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [{word.lower() for word in WORD.findall(r["context"])} for r in sides["train"]]
    known = Counter(word for words in texts for word in words)
    examples, is_answer = [], []
    for record in sides["train"]:
        for number, candidate in enumerate(how.candidates(record, known)):
            is_right = candidate.text.lower() == record["answer"].lower()
            if is_right or number % how.every == 0:
                examples.append(candidate.features)
                is_answer.append(is_right)
    vectors = DictVectorizer(dtype=np.float32)
    train = with_short_indices(vectors.fit_transform(examples))

    def guess(model: Any, side: str) -> list[str]:
        guesses = []
        for record in sides[side]:
            found = list(how.candidates(record, known))
            sheet = vectors.transform([c.features for c in found]) if found else None
            guesses.append(likeliest(found, model.predict_proba(sheet)[:, 1]) if found else "")
        return guesses

    def f1(model: Any) -> float:
        validation = sides["validation"]
        return answer_figures(guess(model, "validation"), validation, how.unit)["f1"]

    models = [LogisticRegression(C=c, solver="liblinear").fit(train, is_answer) for c in STRENGTHS]
    return guess(max(models, key=f1), "test")


def likeliest(candidates: Sequence[Candidate], chances: np.ndarray) -> str:
    sums: dict[str, float] = {}
    for candidate, chance in zip(candidates, chances, strict=True):
        key = candidate.text.lower()
        sums[key] = sums.get(key, 0.0) + float(chance)
    return max(sums, key=lambda text: sums[text])


def word_candidates(record: Record, known: Counter[str]) -> Iterator[Candidate]:
    """The words of the context that are not in the question, with the words around them and
    around the gap: whether these are the same, and which they are.
    """
    asked = [word.lower() for word in re.findall(rf"{GAP}|{WORD.pattern}", record["question"])]
    gap = asked.index(GAP)
    around_gap = {-1: ["", *asked][gap], 1: [*asked, ""][gap + 1]}
    others = set(asked)
    found = list(WORD.finditer(record["context"]))
    words = ["", "", *(match.group().lower() for match in found), "", ""]
    counts = Counter(words)
    for place, match in enumerate(found):
        word, at = words[place + 2], place + 2
        if len(word) < 4 or word in others:
            continue
        near = words[at - 2 : at] + words[at + 1 : at + 3]
        features: Features = {
            "place": math.log1p(place),
            "times": math.log(counts[word]),
            "known": math.log1p(known[word]),
            "length": math.log(len(word)),
            "asked near": sum(other in others for other in near if other),
            "capital": float(match.group()[0].isupper()),
            "capitals": float(match.group()[1:].isupper()),
            f"word {word}": 1,
            f"ending {word[-3:]}": 1,
        }
        for side, other in around_gap.items():
            beside = words[at + side]
            features[f"same at {side}"] = float(bool(other) and beside == other)
            features[f"near of {side}"] = float(bool(other) and other in near)
            features[f"ending {word[-3:]}, gap {side} {other}"] = 1
            features[f"context {side} {beside}"] = 1
        yield Candidate(match.group(), match.start(), features)


def name_candidates(record: Record, known: Counter[str]) -> Iterator[Candidate]:
    """Each two to four characters of the context, with those around them and their distance
    behind the question's title.
    """
    context, title = record["context"], record["question"].removesuffix(QUESTION_END)
    behind = context.find(title) + len(title)
    for start in range(len(context)):
        for length in NAME_CHARACTERS:
            text = context[start : start + length]
            if len(text) < length or not text.isalpha():
                continue
            distance = start - behind
            near = str(distance) if 0 <= distance <= NEAR else "far" if distance > 0 else "before"
            yield Candidate(
                text,
                start,
                {
                    f"behind {near}, {length}": 1,
                    f"first {text[0]}": 1,
                    f"last {text[-1]}, {length}": 1,
                    f"length {length}": 1,
                    f"before {context[start - 1 : start]}": 1,
                    f"after {context[start + length : start + length + 1]}": 1,
                    f"first {text[0]}, {length}": 1,
                    f"after {context[start + length : start + length + 2]}": 1,
                },
            )


def pick_sentence(question: str, context: str) -> str:
    """By TF-IDF of 1 to 3 characters, of which the context's sentences are the documents."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    cut = re.split(r"(?<=[。！？；，])|(?<=[.;]) ", context)
    sentences = [sentence for sentence in cut if sentence.strip()]
    features = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    known = features.fit_transform(sentences)
    return sentences[int((features.transform([question]) @ known.T).toarray().argmax())]


def cut_behind_title(record: Record, length: int) -> str:
    title = record["question"].removesuffix(QUESTION_END)
    return record["context"].partition(title)[2][:length]


def answer_figures(guesses: Sequence[str], records: Sequence[Record], unit: Unit) -> Figures:
    """As lmscale scores answers: exact match, and F1 of words or, in Chinese, of characters."""
    from lmscale.metrics.answers import add_scores, score_answer

    total = add_scores(
        score_answer(guess, [record["answer"]], unit)
        for guess, record in zip(guesses, records, strict=True)
    )
    return {"exact_match": total.exact / total.count, "f1": total.f1 / total.count}
