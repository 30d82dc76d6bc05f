"""What a fine-tuned model has to be better than: counts and linear models of scikit-learn.

    python benchmarks/fine_tuning/classical.py --folder runs/fine-tuning [reviews news help …]

Fitted on a set's train side, settings chosen on its validation side, figures of its test side.
Needs scikit-learn and sacrebleu; everything is computed on one core within minutes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from found import score_gaps, score_offices, with_short_indices

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


def score_numbers(sides: Sides) -> dict[str, Figures]:
    """TF-IDF and ridge regression, and the mean of all scores."""
    from sklearn.linear_model import Ridge

    features = text_features(chinese=False)
    train = features.fit_transform([r["text"] for r in sides["train"]])
    scores = {side: np.array([r["score"] for r in records]) for side, records in sides.items()}

    def figures(guesses: np.ndarray, side: str) -> Figures:
        errors = scores[side] - guesses
        return {"loss": float(np.mean(errors**2)), "absolute_error": float(np.mean(abs(errors)))}

    def guess(model: Any, side: str) -> np.ndarray:
        return model.predict(features.transform([r["text"] for r in sides[side]]))

    models = [Ridge(alpha=1 / c).fit(train, scores["train"]) for c in STRENGTHS]
    best = min(models, key=lambda m: figures(guess(m, "validation"), "validation")["loss"])
    constant = np.full(len(scores["test"]), scores["train"].mean())
    return {
        "ridge regression": figures(guess(best, "test"), "test"),
        "mean of all": figures(constant, "test"),
    }


def score_tags(sides: Sides) -> dict[str, Figures]:
    """A word's most frequent tag, and a logistic regression that also sees its neighbours."""
    from sklearn.metrics import f1_score

    truth = [tag for r in sides["test"] for tag in r["tags"]]
    return {
        name: {
            "accuracy": float(np.mean([a == b for a, b in zip(truth, guesses, strict=True)])),
            "f1_macro": float(f1_score(truth, guesses, average="macro", zero_division=0)),
        }
        for name, guesses in guess_tags(sides, word_features).items()
    }


def score_entities(sides: Sides) -> dict[str, Figures]:
    """The same two of English words, by whole entities."""
    names = sorted({tag for records in sides.values() for r in records for tag in r["tags"]})
    return {
        name: {"f1_entities": entity_f1(guesses, sides["test"], names)}
        for name, guesses in guess_tags(sides, english_features).items()
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


def guess_tags(sides: Sides, features: Callable[..., dict[str, str]]) -> dict[str, list[str]]:
    return {
        "most frequent tag of a word": frequent_tags(sides["train"], sides["test"]),
        "logistic regression, word and neighbours": linear_tags(sides, features),
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


def english_features(words: Sequence[str], place: int) -> dict[str, str]:
    """What taggers of names look at: endings and beginnings, and how words are written, of two
    words on each side, too.
    """
    features = {"start": str(place == 0)}
    for at in range(place - 2, place + 3):
        word = words[at] if 0 <= at < len(words) else ""
        features[f"word {at - place}"] = word.lower()
        features[f"shape {at - place}"] = re.sub(
            r"(.)\1{2,}", r"\1\1", re.sub("[A-Z]", "X", re.sub("[a-z]", "x", re.sub("[0-9]", "0", word)))
        )
        if abs(at - place) < 2:
            features |= {f"end {n}, {at - place}": word[-n:].lower() for n in (2, 3)}
            features |= {f"begin {n}, {at - place}": word[:n].lower() for n in (1, 3)}
    pairs = [("word -1", "word 0"), ("word 0", "word 1"), ("shape -1", "shape 0"), ("shape 0", "shape 1")]
    return features | {f"{a}+{b}": f"{features[a]} {features[b]}" for a, b in pairs}


def linear_tags(sides: Sides, features: Callable[..., dict[str, str]]) -> list[str]:
    """Of two strengths the one with the better accuracy on validation."""
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import SGDClassifier

    def of(side: str) -> list[dict[str, str]]:
        return [
            features(record["words"], place)
            for record in sides[side]
            for place in range(len(record["words"]))
        ]

    def tags(side: str) -> list[str]:
        return [tag for record in sides[side] for tag in record["tags"]]

    vectors = DictVectorizer(dtype=np.float32)
    train = with_short_indices(vectors.fit_transform(of("train")))
    validation = with_short_indices(vectors.transform(of("validation")))
    models = [
        SGDClassifier(loss="log_loss", alpha=alpha, max_iter=12, tol=None, random_state=1).fit(
            train, tags("train")
        )
        for alpha in (1e-6, 1e-5)
    ]
    best = max(models, key=lambda model: model.score(validation, tags("validation")))
    return list(best.predict(with_short_indices(vectors.transform(of("test")))))


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
    """The spelling itself, what a letter is most often aligned with, the most similar word of
    train, and a regression that tells the phonemes of each letter by its neighbours.
    """
    spellings = [r["spelling"] for r in sides["test"]]
    train = [{"en": r["spelling"], "zh": r["phonemes"]} for r in sides["train"]]
    ways = {
        "copy": spellings,
        "dictionary (IBM model 1)": translate_letters(sides["train"], spellings),
        "nearest word of train": translate_by_memory(train, spellings),
    }
    return {
        name: written_figures(guesses, [r["phonemes"] for r in sides["test"]], tokenize="13a")
        for name, guesses in ways.items()
    }


def written_figures(guesses: Sequence[str], truth: Sequence[str]) -> Figures:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return {
        "bleu": BLEU(tokenize="zh").corpus_score(guesses, [truth]).score,
        "chrf": CHRF().corpus_score(guesses, [truth]).score,
    }


def cut_words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def cut_characters(text: str) -> list[str]:
    """Pairs of characters: nearer to Chinese words than single ones."""
    return [
        piece[at : at + 2] if "\u4e00" <= piece[0] <= "\u9fff" else piece
        for piece in re.findall(r"[\u4e00-\u9fff]+|[A-Za-z0-9]+|[^\s\w]", text)
        for at in (range(0, len(piece), 2) if "\u4e00" <= piece[0] <= "\u9fff" else (0,))
    ]


def translate_words(train: Iterable[Record], english: Sequence[str], rounds: int = 5) -> list[str]:
    """Each word by what it is likeliest aligned with (Brown et al. 1993, model 1), in its place."""
    pairs = [(cut_words(r["en"]), cut_characters(r["zh"])) for r in train]
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for ours, theirs in pairs:
        for word in ours:
            table[word].update(dict.fromkeys(theirs, 1.0))
    for _ in range(rounds):
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
    return ["".join(best.get(word, word) for word in cut_words(text)) for text in english]


def translate_by_memory(train: Sequence[Record], english: Sequence[str]) -> list[str]:
    """What a translator's memory gives: the Chinese of the most similar English."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+")
    known = features.fit_transform([r["en"] for r in train])
    nearest = np.asarray((features.transform(english) @ known.T).argmax(axis=1)).ravel()
    return [train[at]["zh"] for at in nearest]


SETS: dict[str, Callable[[Sides], dict[str, Figures]]] = {
    "reviews": lambda sides: score_classes(sides, chinese=True),
    "reviews_1000": lambda sides: score_classes(sides, chinese=True),
    "signs": lambda sides: score_classes(sides, chinese=False),
    "signs_2000": lambda sides: score_classes(sides, chinese=False),
    "scored": score_numbers,
    "news": score_tags,
    "news_300": score_tags,
    "news_1000": score_tags,
    "help": score_translations,
    "questions": score_offices,
    "gaps": score_gaps,
    "tweets": score_entities,
    "spoken": score_spoken,
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
