"""Held-out classes and tags: counts over micro-batches and ranks, figures, and examples of errors.

What is counted is whole numbers, so that it is the same on any number of ranks; and it is counted
here, of what a scoring has chosen (``Choices``), so that no family of models is asked how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.labels import LabelSet
from lmscale.config.supervised import LabelledConfig
from lmscale.metrics.classification import Tally, count_confusion, tally_classes
from lmscale.metrics.entities import count_entities, plan_entities, tally_entities
from lmscale.objective.scores import Choices
from lmscale.ranks.collectives import gather_json
from lmscale.shards.members import PARTS
from lmscale.stream.batches import Rows

MAX_MISTAKES = 10  # that are shown of a set while a run trains
MAX_TEXT = 400  # characters of a text that is shown


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """What is counted of every set of a run, and how many errors are shown."""

    labels: LabelSet
    figures: tuple[str, ...]
    """``counted`` of the objective."""
    decode: Callable[[np.ndarray], str]
    max_mistakes: int


def plan_labels(
    config: RunConfig, decode: Callable[[np.ndarray], str], *, max_mistakes: int
) -> LabelPlan | None:
    """None where the run's objective tells no classes apart, or more than are counted."""
    objective = config.objective
    if not isinstance(objective, LabelledConfig) or not objective.counted:
        return None
    return LabelPlan(
        labels=objective.labels,
        figures=objective.counted,
        decode=decode,
        max_mistakes=max_mistakes,
    )


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A document, or a word of one, that was taken for another class."""

    window: int  # of the set
    place: int  # in the window, of what was scored
    text: str  # of the document; of a pair the first text
    second: str | None  # the other one
    word: str | None  # of a tag
    true: str
    predicted: str
    probability: float  # that the model gives to what it predicts, to four digits

    @property
    def rank(self) -> tuple[float, int, int]:
        """The surest come first: there labels are wrong, or a model has learned what is."""
        return -self.probability, self.window, self.place


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelScore:
    """What a set's classes come to."""

    names: tuple[str, ...]
    confusion: np.ndarray
    """int64 [classes, classes]: examples of a row's class that were taken for a column's."""
    entity_types: tuple[str, ...] = ()
    entities: Tally | None = None
    """By their types, where the tags name entities."""
    mistakes: tuple[Mistake, ...] = ()

    @property
    def tally(self) -> Tally:
        return tally_classes(self.confusion)

    @property
    def figures(self) -> dict[str, float]:
        """Those of ``counted`` in the objective's section, in its order."""
        tally = self.tally
        figures = {f"f1_{kind}": tally.mean(kind).f1 for kind in ("macro", "micro", "weighted")}
        if self.entities is not None:
            figures["f1_entities"] = self.entities.mean("micro").f1
        return figures

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {"classes": _to_rows(self.names, self.tally), "confusion": self.confusion.tolist()}
        if self.entities is not None:
            found["entities"] = _to_rows(self.entity_types, self.entities)
        return found | {"mistakes": [vars(mistake) for mistake in self.mistakes]}


class LabelCounts:
    """This rank's counts of a set, which ``values`` has for a sum over the ranks."""

    def __init__(self, plan: LabelPlan) -> None:
        self.plan, self._names = plan, plan.labels.names
        self._tags = plan_entities(self._names) if plan.labels.kind == "tags" else None
        types = () if self._tags is None else self._tags.types
        self._confusion = np.zeros((len(self._names),) * 2, dtype=np.int64)
        self._entities = np.zeros((len(types), 3), dtype=np.int64)
        self._mistakes: list[Mistake] = []

    def add(self, rows: Rows, arrays: Mapping[str, np.ndarray], choices: Choices | None) -> None:
        """Count a micro-batch. ``arrays`` has the flat ``positions`` that were scored, and their
        ``labels``, both [N].
        """
        assert choices is not None, "a labelled scoring says in evaluation what it has chosen"
        predicted, probability = (each.cpu().numpy() for each in choices)
        probability = probability.astype(np.float64).round(4)
        true, positions = arrays["labels"], arrays["positions"]
        self._confusion += count_confusion(true, predicted, len(self._names))
        documents = np.searchsorted(rows.starts, positions, side="right") - 1
        if self._tags is not None:
            self._entities += count_entities(true, predicted, documents, self._tags)
        # As rounded, so that ties are the same in whichever micro-batch a window is; NaN is sure of
        # nothing.
        wrong = np.flatnonzero((true != predicted) & ~np.isnan(probability))
        surest = wrong[np.argsort(-probability[wrong], kind="stable")][: self.plan.max_mistakes]
        for each in surest.tolist():
            words = (int(positions[each]), _next(positions, each)) if self._is_of_words else None
            document = int(documents[each])
            self._mistakes.append(
                Mistake(
                    **_locate(rows, int(positions[each])),
                    **_read(rows, document, words, self.plan.decode),
                    true=self._names[int(true[each])],
                    predicted=self._names[int(predicted[each])],
                    probability=float(probability[each]),
                )
            )
        self._mistakes = _choose(self._mistakes, self.plan.max_mistakes)

    @property
    def _is_of_words(self) -> bool:
        return self.plan.labels.kind == "tags"

    @property
    def values(self) -> list[int]:
        return [*self._confusion.ravel().tolist(), *self._entities.ravel().tolist()]

    def finish(self, sums: Sequence[float]) -> LabelScore:
        """The score of all ranks together, by the sums of their ``values``. All of them call it."""
        counts = np.array(sums).round().astype(np.int64)
        confusion, entities = np.split(counts, [self._confusion.size])
        gathered = gather_json([vars(mistake) for mistake in self._mistakes])
        mistakes = [Mistake(**row) for rows in gathered for row in rows]
        tags = self._tags
        return LabelScore(
            names=self._names,
            confusion=confusion.reshape(self._confusion.shape),
            entity_types=() if tags is None else tags.types,
            entities=None if tags is None else tally_entities(entities.reshape(-1, 3)),
            mistakes=tuple(_choose(mistakes, self.plan.max_mistakes)),
        )


def _choose(mistakes: list[Mistake], limit: int) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: mistake.rank)[:limit]


def _next(positions: np.ndarray, number: int) -> int | None:
    """Where the next word that was scored begins."""
    return int(positions[number + 1]) if number + 1 < len(positions) else None


def _locate(rows: Rows, position: int) -> dict[str, Any]:
    row, place = divmod(position, rows.tokens.shape[1])
    return {"window": int(rows.numbers[row]), "place": place}


def _read(
    rows: Rows,
    document: int,
    word: tuple[int, int | None] | None,
    decode: Callable[[np.ndarray], str],
) -> dict[str, Any]:
    """The texts of a document, cut; ``word``: where it begins, and the next one."""
    ids, width = rows.tokens.reshape(-1), rows.tokens.shape[1]
    begin = int(rows.starts[document])
    row = begin // width
    end = row * width + int(rows.lengths[row])
    if document + 1 < len(rows.starts):
        end = min(end, int(rows.starts[document + 1]))
    border = begin + int(rows.members[PARTS][document]) if PARTS in rows.members else end

    def show(first: int, last: int) -> str:
        text = decode(ids[first : min(last, first + 4 * MAX_TEXT)])  # a character's bytes: up to 4
        return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"

    return {
        "text": show(begin, border),
        "second": show(border, end) if border < end else None,
        "word": None if word is None else show(word[0], min(word[1] or end, end)).strip(),
    }


def _to_rows(names: Sequence[str], tally: Tally) -> dict[str, dict[str, float]]:
    columns = ("precision", "recall", "f1", "true", "predicted", "hits")
    values = [getattr(tally, column).tolist() for column in columns]
    return {
        name: dict(zip(columns, row, strict=True))
        for name, row in zip(names, zip(*values, strict=True), strict=True)
    }


def render_classes(score: LabelScore) -> str:
    """A line for each class, its figures in percent, its number, and one for each mean; then of
    entities. Names stand last: how wide they are on a terminal is not known.
    """
    title = f"{'precision':>9}  {'recall':>6}  {'F1':>6}  {'true':>9}  {'predicted':>9}"
    parts = [("class", score.names, score.tally)]
    if score.entities is not None:
        parts.append(("entity", score.entity_types, score.entities))
    lines = []
    for what, names, tally in parts:
        lines.append(f"{title}  {what}")
        columns = (tally.precision, tally.recall, tally.f1, tally.true, tally.predicted)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        lines += [
            _render_row(f"{number} {name}", *row)
            for number, (name, row) in enumerate(zip(names, rows, strict=True))
        ]
        true, predicted = int(tally.true.sum()), int(tally.predicted.sum())
        for kind in ("macro", "micro", "weighted"):
            mean = tally.mean(kind)
            lines.append(
                _render_row(f"({kind})", mean.precision, mean.recall, mean.f1, true, predicted)
            )
    return "\n".join(lines)


def _render_row(
    name: str, precision: float, recall: float, f1: float, true: int, predicted: int
) -> str:
    shares = f"{100 * precision:9.2f}  {100 * recall:6.2f}  {100 * f1:6.2f}"
    return f"{shares}  {true:9,}  {predicted:9,}  {name}"


def render_mistakes(mistakes: Sequence[Mistake]) -> str:
    """Two lines or three for each, the texts with their line breaks shown."""
    lines = []
    for each in mistakes:
        word = f"{each.word!r}: " if each.word is not None else ""
        lines.append(f"{word}{each.true} → {each.predicted} ({100 * each.probability:.2f} %)")
        texts = [text for text in (each.text, each.second) if text is not None]
        lines += ["    " + " ⏎ ".join(text.split("\n")) for text in texts]
    return "\n".join(lines)
