"""What a fine-tuned model has to be better than: counts and linear models of scikit-learn.

    python benchmarks/fine_tuning/classical.py --folder runs/fine-tuning [reviews_1000 tweets …]

Fitted on a set's train side, settings chosen on its validation side, figures of its test side.
Needs scikit-learn and sacrebleu; everything is computed on one core within minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from found import score_gaps, score_offices
from letters import with_short_indices
from translated import score_spoken, score_translations

Record = Mapping[str, Any]
Sides = Mapping[str, Sequence[Record]]
Figures = dict[str, float]
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # inverse of the L2 penalty, as LogisticRegression's C


def text_features(chinese: bool) -> Any:
    """TF-IDF of words and pairs of them; of Chinese, which has no spaces, of 1 to 3 characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    units = {"analyzer": "char", "ngram_range": (1, 3)} if chinese else {"ngram_range": (1, 2)}
    return TfidfVectorizer(sublinear_tf=True, min_df=2, **units)


def score_classes(sides: Sides, *, chinese: bool) -> dict[str, Figures]:
    """TF-IDF and logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    features = text_features(chinese)
    train = features.fit_transform([r["text"] for r in sides["train"]])
    labels = [r["label"] for r in sides["train"]]

    def accuracy(model: Any, side: str) -> float:
        texts = features.transform([r["text"] for r in sides[side]])
        return float(model.score(texts, [r["label"] for r in sides[side]]))

    models = [LogisticRegression(C=c, max_iter=1000).fit(train, labels) for c in STRENGTHS]
    best = max(models, key=lambda model: accuracy(model, "validation"))
    guesses = best.predict(features.transform([r["text"] for r in sides["test"]]))
    f1 = f1_score([r["label"] for r in sides["test"]], guesses, average="macro")
    return {
        "logistic regression": {"accuracy": accuracy(best, "test"), "f1_macro": float(f1)},
        "most frequent class": {"accuracy": most_frequent(sides)},
    }


def most_frequent(sides: Sides) -> float:
    (label, _), *_ = Counter(r["label"] for r in sides["train"]).most_common()
    return float(np.mean([r["label"] == label for r in sides["test"]]))


def score_tags(sides: Sides) -> dict[str, Figures]:
    """A word's most frequent tag, and a logistic regression that also sees its neighbours."""
    from sklearn.metrics import f1_score

    truth = [tag for r in sides["test"] for tag in r["tags"]]

    def accuracy(guesses: Sequence[str], records: Sequence[Record]) -> float:
        wanted = (tag for r in records for tag in r["tags"])
        return float(np.mean([a == b for a, b in zip(wanted, guesses, strict=True)]))

    return {
        name: {
            "accuracy": accuracy(guesses, sides["test"]),
            "f1_macro": float(f1_score(truth, guesses, average="macro", zero_division=0)),
        }
        for name, guesses in guess_tags(sides, word_features, accuracy).items()
    }


def score_entities(sides: Sides) -> dict[str, Figures]:
    """The same two of English words, by whole entities."""
    names = sorted({tag for records in sides.values() for r in records for tag in r["tags"]})
    judge = partial(entity_f1, names=names)
    return {
        name: {"f1_entities": judge(guesses, sides["test"])}
        for name, guesses in guess_tags(sides, english_features, judge).items()
    }


def entity_f1(guesses: Sequence[str], records: Sequence[Record], names: Sequence[str]) -> float:
    """As lmscale scores entities."""
    from lmscale.metrics.entities import count_entities, plan_entities

    tags = plan_entities(names)
    assert tags is not None
    numbers = [
        np.array([names.index(tag) for tag in of])
        for of in ([tag for r in records for tag in r["tags"]], guesses)
    ]
    documents = np.repeat(np.arange(len(records)), [len(r["tags"]) for r in records])
    hits, predicted, true = count_entities(*numbers, documents, tags).sum(axis=0)
    return float(2 * hits / (predicted + true))


Judge = Callable[[Sequence[str], Sequence[Record]], float]
Features = Callable[[Sequence[str], int], dict[str, str]]


def guess_tags(sides: Sides, features: Features, judge: Judge) -> dict[str, list[str]]:
    return {
        "most frequent tag of a word": frequent_tags(sides["train"], sides["test"]),
        "logistic regression, word and neighbours": linear_tags(sides, features, judge),
    }


def frequent_tags(train: Iterable[Record], test: Iterable[Record]) -> list[str]:
    """Of an unknown word that of words with its last character, else the most frequent of all."""
    words: dict[str, Counter[str]] = defaultdict(Counter)
    endings: dict[str, Counter[str]] = defaultdict(Counter)
    every: Counter[str] = Counter()
    for record in train:
        for word, tag in zip(record["words"], record["tags"], strict=True):
            for counter in (words[word], endings[word[-1]], every):
                counter[tag] += 1

    def tag_of(word: str) -> str:
        counter = words.get(word) or endings.get(word[-1]) or every
        return max(counter.items(), key=lambda item: (item[1], item[0]))[0]

    return [tag_of(word) for record in test for word in record["words"]]


def word_features(words: Sequence[str], place: int) -> dict[str, str]:
    word = words[place]
    before, after = ("", *words)[place], (*words, "")[place + 1]
    return {
        "word": word,
        "first": word[0],
        "last": word[-1],
        "length": str(min(len(word), 5)),
        "before": before,
        "after": after,
        "before last": before[-1:],
        "after first": after[:1],
        "before+word": f"{before} {word}",
        "word+after": f"{word} {after}",
    }


_SHAPES = str.maketrans(
    string.ascii_uppercase + string.ascii_lowercase + string.digits, "X" * 26 + "x" * 26 + "0" * 10
)
_TOGETHER = (("word -1", "word 0"), ("word 0", "word 1"), ("shape -1", "shape 0"))
_TOGETHER += (("shape 0", "shape 1"),)


def english_features(words: Sequence[str], place: int) -> dict[str, str]:
    """What taggers of names look at: endings and beginnings, and how words are written, of two
    words on each side, too.
    """
    features = {"start": str(place == 0)}
    for at in range(place - 2, place + 3):
        word = words[at] if 0 <= at < len(words) else ""
        features[f"word {at - place}"] = word.lower()
        features[f"shape {at - place}"] = re.sub(r"(.)\1{2,}", r"\1\1", word.translate(_SHAPES))
        if abs(at - place) < 2:
            features |= {f"end {n}, {at - place}": word[-n:].lower() for n in (2, 3)}
            features |= {f"begin {n}, {at - place}": word[:n].lower() for n in (1, 3)}
    return features | {f"{a}+{b}": f"{features[a]} {features[b]}" for a, b in _TOGETHER}


def linear_tags(sides: Sides, features: Features, judge: Judge) -> list[str]:
    """Of the strengths the one that ``judge`` likes best on validation."""
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import SGDClassifier

    vectors = DictVectorizer(dtype=np.float32)
    sheets = {
        side: with_short_indices(
            (vectors.fit_transform if side == "train" else vectors.transform)(
                [features(r["words"], n) for r in sides[side] for n in range(len(r["words"]))]
            )
        )
        for side in ("train", "validation", "test")
    }
    tags = [tag for r in sides["train"] for tag in r["tags"]]
    models = [
        SGDClassifier(loss="log_loss", alpha=alpha, max_iter=12, tol=None, random_state=1).fit(
            sheets["train"], tags
        )
        for alpha in (1e-6, 1e-5, 1e-4)
    ]
    best = max(
        models, key=lambda m: judge(list(m.predict(sheets["validation"])), sides["validation"])
    )
    return list(best.predict(sheets["test"]))


SETS: dict[str, Callable[[Sides], dict[str, Figures]]] = {
    "reviews_1000": lambda sides: score_classes(sides, chinese=True),
    "signs": lambda sides: score_classes(sides, chinese=False),
    "signs_2000": lambda sides: score_classes(sides, chinese=False),
    "tweets": score_entities,
    "news_1000": score_tags,
    "gaps": score_gaps,
    "questions": score_offices,
    "spoken": score_spoken,
    "help": score_translations,
}


def read_sides(folder: Path) -> dict[str, list[Record]]:
    return {
        side: [json.loads(line) for line in (folder / f"{side}.jsonl").read_bytes().splitlines()]
        for side in ("train", "validation", "test")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/fine-tuning"))
    parser.add_argument("sets", nargs="*", default=list(SETS), metavar="SET", choices=list(SETS))
    arguments = parser.parse_args()
    for name in arguments.sets:
        for way, figures in SETS[name](read_sides(arguments.folder / "data" / name)).items():
            print(f"{name:12} {way:42}", *(f"{key} {value:.4f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
