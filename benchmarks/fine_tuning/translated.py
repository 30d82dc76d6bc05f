"""Texts written for others without a neural network: from English to Chinese, from letters to
phonemes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from letters import LetterRegression, Pair

Record = Mapping[str, Any]
Sides = Mapping[str, Sequence[Record]]
Figures = dict[str, float]
IBM_ROUNDS = 5


def score_translations(sides: Sides) -> dict[str, Figures]:
    """The English text itself, a dictionary by counts, and the most similar text of train."""
    english = [r["en"] for r in sides["test"]]
    ways: dict[str, Callable[[], list[str]]] = {
        "copy": lambda: english,
        "dictionary (IBM model 1)": lambda: translate_words(sides["train"], english),
        "nearest text of train": lambda: translate_by_memory(sides["train"], english),
    }
    return {
        name: written_figures(way(), [r["zh"] for r in sides["test"]]) for name, way in ways.items()
    }


def score_spoken(sides: Sides) -> dict[str, Figures]:
    """The spelling itself, what each letter is likeliest aligned with, the most similar word of
    train, and a regression that sees the letters around each one.
    """
    spellings = [r["spelling"] for r in sides["test"]]
    train = [{"en": r["spelling"], "zh": r["phonemes"]} for r in sides["train"]]
    words: dict[str, list[Pair]] = {
        side: [(r["spelling"].split(), r["phonemes"].split()) for r in records]
        for side, records in sides.items()
    }

    def count_right(model: LetterRegression) -> int:
        said = model.spell([letters for letters, _ in words["validation"]])
        wanted = [" ".join(phonemes) for _, phonemes in words["validation"]]
        return sum(a == b for a, b in zip(said, wanted, strict=True))

    best = max((LetterRegression(words["train"], c) for c in (1.0, 10.0)), key=count_right)
    ways = {
        "copy": spellings,
        "dictionary (IBM model 1)": translate_words(train, spellings, cut=str.split, glue=" "),
        "nearest word of train": translate_by_memory(train, spellings, pattern=r"\S", most=4),
        "logistic regression, letter by letter": best.spell(
            [letters for letters, _ in words["test"]]
        ),
    }
    wanted = [r["phonemes"] for r in sides["test"]]
    return {name: written_figures(guesses, wanted) for name, guesses in ways.items()}


def written_figures(guesses: Sequence[str], truth: Sequence[str]) -> Figures:
    """As lmscale scores what is written."""
    from lmscale.metrics.written import score_written

    return score_written(guesses, truth).figures


def cut_words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def cut_characters(text: str) -> list[str]:
    """Pairs of characters: nearer to Chinese words than single ones."""
    return [
        piece[at : at + 2] if "\u4e00" <= piece[0] <= "\u9fff" else piece
        for piece in re.findall(r"[\u4e00-\u9fff]+|[A-Za-z0-9]+|[^\s\w]", text)
        for at in (range(0, len(piece), 2) if "\u4e00" <= piece[0] <= "\u9fff" else (0,))
    ]


def translate_words(
    train: Iterable[Record],
    english: Sequence[str],
    cut: Callable[[str], list[str]] | None = None,
    glue: str = "",
) -> list[str]:
    """Each word by what it is likeliest aligned with (Brown et al. 1993, model 1), in its place.
    ``cut``: how both texts are cut into words, by default English and Chinese.
    """
    pairs = [((cut or cut_words)(r["en"]), (cut or cut_characters)(r["zh"])) for r in train]
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for ours, theirs in pairs:
        for word in ours:
            table[word].update(dict.fromkeys(theirs, 1.0))
    for _ in range(IBM_ROUNDS):
        counts: dict[str, dict[str, float]] = {
            word: dict.fromkeys(to, 0.0) for word, to in table.items()
        }
        for ours, theirs in pairs:
            for piece in theirs:
                total = sum(table[word][piece] for word in ours)
                for word in ours:
                    counts[word][piece] += table[word][piece] / total
        table.clear()
        for word, to in counts.items():
            mass = sum(to.values()) or 1.0
            table[word] = {piece: max(count / mass, 1e-12) for piece, count in to.items()}
    best = {word: max(to.items(), key=lambda item: item[1])[0] for word, to in table.items() if to}
    return [glue.join(best.get(w, w) for w in (cut or cut_words)(text)) for text in english]


def translate_by_memory(
    train: Sequence[Record], english: Sequence[str], *, pattern: str = r"\w+", most: int = 2
) -> list[str]:
    """What a translator's memory gives: the Chinese of the most similar English."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, most), token_pattern=pattern)
    known = features.fit_transform([r["en"] for r in train])
    nearest = np.asarray((features.transform(english) @ known.T).argmax(axis=1)).ravel()
    return [train[at]["zh"] for at in nearest]
