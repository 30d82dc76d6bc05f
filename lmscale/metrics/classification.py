# Shape letters: N examples, C classes.
"""How well classes are told apart: counts, which may be added, and figures made of their sum.

The figures are those of scikit-learn's ``precision_recall_fscore_support`` with ``zero_division=0``
and no ``labels``: a quotient of nothing is 0, and means leave out classes that neither occur nor
were ever predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Mean = Literal["macro", "micro", "weighted"]


def count_confusion(true_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix, int64 [C, C]: examples of a row's class that were taken for a column's.

    Both are whole numbers in [0, C).
    """
    pairs_N = true_N.astype(np.int64) * num_classes + predicted_N
    return np.bincount(pairs_N, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tally:
    """For every class how many there are, how many were predicted, and how many of these rightly.

    All int64 [C]. What is counted may be examples, or entities of a type.
    """

    hits: np.ndarray
    predicted: np.ndarray
    true: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """f64 [C]: hits of what was predicted."""
        return _divide(self.hits, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """f64 [C]: hits of what there is."""
        return _divide(self.hits, self.true)

    @property
    def f1(self) -> np.ndarray:
        """f64 [C]: the harmonic mean of both, of counts that are whole numbers until here."""
        return _divide(2 * self.hits, self.predicted + self.true)

    def mean(self, kind: Mean) -> Averages:
        """One figure of all classes: ``macro`` their mean, ``weighted`` by how many there are of
        each, ``micro`` that of all classes' counts together.
        """
        if kind == "micro":
            one = Tally(**{name: value.sum(keepdims=True) for name, value in vars(self).items()})
            return Averages(*(float(each[0]) for each in (one.precision, one.recall, one.f1)))
        figures = (self.precision, self.recall, self.f1)
        weights = self.true if kind == "weighted" else (self.true + self.predicted > 0)
        if not weights.any():
            return Averages(0.0, 0.0, 0.0)
        chosen = weights > 0
        return Averages(
            *(float(np.average(each[chosen], weights=weights[chosen])) for each in figures)
        )


@dataclass(frozen=True)
class Averages:
    """Of all classes together."""

    precision: float
    recall: float
    f1: float


def tally_classes(confusion_CC: np.ndarray) -> Tally:
    """What a confusion matrix says of every class."""
    return Tally(
        hits=confusion_CC.diagonal(), predicted=confusion_CC.sum(0), true=confusion_CC.sum(1)
    )


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
