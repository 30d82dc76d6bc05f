"""Phonemes by letters, without a neural network: alignment, then one letter at a time.

Each letter says none, one or two phonemes, in the order of the word (Black, Lenzo and Pagel 1998).
``align`` finds which, by counts that a few rounds make sharper; ``LetterRegression`` then tells a
letter's phonemes by the letters around it, a logistic regression of scikit-learn.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

Chunks = list[str]  # what each letter of a word says, its phonemes joined by spaces
Pair = tuple[list[str], list[str]]  # letters and phonemes
MAX_PHONEMES = 2  # of a letter
ROUNDS = 6
AROUND = 4  # letters on each side that are looked at
SEVERAL = ((-1, 0), (0, 1), (-1, 1), (-2, 0), (0, 2), (-2, 1), (-1, 2), (0, 3), (-3, 0))
_UNSEEN = 1e-4


def align(pairs: Sequence[Pair]) -> list[Chunks | None]:
    """The likeliest chunks of each word; None where it has too many phonemes for its letters."""
    chances: dict[str, dict[str, float]] = {}
    aligned: list[Chunks | None] = []
    for _ in range(ROUNDS):
        aligned = [align_word(letters, phonemes, chances) for letters, phonemes in pairs]
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for (letters, _), chunks in zip(pairs, aligned, strict=True):
            for letter, chunk in zip(letters, chunks or (), strict=False):
                counts[letter][chunk] += 1
        chances = {
            letter: {chunk: count / of.total() for chunk, count in of.items()}
            for letter, of in counts.items()
        }
    return aligned


def align_word(
    letters: Sequence[str], phonemes: Sequence[str], chances: dict[str, dict[str, float]]
) -> Chunks | None:
    """By dynamic programming. Before anything was counted one phoneme a letter is likeliest, and
    a letter beside a phoneme that has about the same place in the word.
    """

    def score(place: int, begin: int, end: int) -> float:
        if not chances:
            middle = (begin + end) / 2 / max(1, len(phonemes)) - (place + 0.5) / len(letters)
            return -abs(end - begin - 1) - 4 * abs(middle)
        chunk = " ".join(phonemes[begin:end])
        return math.log(chances.get(letters[place], {}).get(chunk, _UNSEEN))

    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]  # end → score and where it began
    for place in range(len(letters)):
        ends: dict[int, tuple[float, int]] = {}
        for begin, (total, _) in best[-1].items():
            for end in range(begin, min(begin + MAX_PHONEMES, len(phonemes)) + 1):
                found = total + score(place, begin, end)
                if end not in ends or found > ends[end][0]:
                    ends[end] = (found, begin)
        best.append(ends)
    end = len(phonemes)
    if end not in best[-1]:
        return None
    chunks: Chunks = []
    for ends in reversed(best[1:]):
        begin = ends[end][1]
        chunks.insert(0, " ".join(phonemes[begin:end]))
        end = begin
    return chunks


def letter_features(letters: Sequence[str], place: int) -> dict[str, str]:
    """The letters around one, and some of them together; "#" stands beyond the word's ends."""

    def at(offset: int) -> str:
        return letters[place + offset] if 0 <= place + offset < len(letters) else "#"

    features = {f"letter {offset}": at(offset) for offset in range(-AROUND, AROUND + 1)}
    for first, last in SEVERAL:
        features[f"letters {first} to {last}"] = "".join(at(n) for n in range(first, last + 1))
    return features


class LetterRegression:
    """Says the phonemes of each letter of a word. ``strength``: inverse of the L2 penalty."""

    def __init__(self, train: Sequence[Pair], strength: float) -> None:
        from sklearn.feature_extraction import DictVectorizer
        from sklearn.linear_model import LogisticRegression

        rows, chunks = [], []
        for (letters, _), found in zip(train, align(train), strict=True):
            for place, chunk in enumerate(found or ()):
                rows.append(letter_features(letters, place))
                chunks.append(chunk)
        self.vectors = DictVectorizer(dtype=np.float32)
        matrix = with_short_indices(self.vectors.fit_transform(rows))
        self.model = LogisticRegression(C=strength, max_iter=200).fit(matrix, chunks)

    def spell(self, words: Sequence[Sequence[str]]) -> list[str]:
        rows = [letter_features(word, place) for word in words for place in range(len(word))]
        guesses = iter(self.model.predict(with_short_indices(self.vectors.transform(rows))))
        return [" ".join(filter(None, [next(guesses) for _ in word])) for word in words]


def with_short_indices(matrix: Any) -> Any:
    """As linear models of scikit-learn take them; DictVectorizer makes indices of 64 bits."""
    matrix.indices, matrix.indptr = matrix.indices.astype("i4"), matrix.indptr.astype("i4")
    return matrix
