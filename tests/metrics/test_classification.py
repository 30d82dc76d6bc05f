"""Figures of classes are scikit-learn's, whatever is predicted, and counts may be added."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from lmscale.metrics.classification import count_confusion, tally_classes

C = 5
EXAMPLES = st.lists(st.tuples(st.integers(0, C - 1), st.integers(0, C - 1)), min_size=1)


def split(examples: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    true_N, predicted_N = np.array(examples, dtype=np.int32).reshape(-1, 2).T
    return true_N, predicted_N


@settings(deadline=None)  # their first call loads much
@given(EXAMPLES)
def test_every_figure_is_that_of_scikit_learn(examples):
    true_N, predicted_N = split(examples)
    confusion_CC = count_confusion(true_N, predicted_N, C)
    assert confusion_CC.dtype == np.int64
    np.testing.assert_array_equal(
        confusion_CC, confusion_matrix(true_N, predicted_N, labels=range(C))
    )
    tally = tally_classes(confusion_CC)
    theirs = precision_recall_fscore_support(true_N, predicted_N, labels=range(C), zero_division=0)
    for ours, their in zip(
        (tally.precision, tally.recall, tally.f1, tally.true), theirs, strict=True
    ):
        np.testing.assert_array_equal(ours, their)
    for kind in ("macro", "micro", "weighted"):
        their = precision_recall_fscore_support(true_N, predicted_N, average=kind, zero_division=0)
        mean = tally.mean(kind)
        # numpy adds another number of zeros, in another order: the last bit may differ.
        assert (mean.precision, mean.recall, mean.f1) == pytest.approx(their[:3], rel=1e-15)
    assert tally.mean("micro").f1 == accuracy_score(true_N, predicted_N)


@settings(deadline=None)  # their first call loads much
@given(EXAMPLES, st.integers(0, 40))
def test_counts_of_parts_add_up_to_those_of_the_whole(examples, cut):
    parts = (count_confusion(*split(part), C) for part in (examples[:cut], examples[cut:]))
    np.testing.assert_array_equal(sum(parts), count_confusion(*split(examples), C))


def test_a_class_that_neither_is_nor_was_predicted_is_in_no_mean_and_nothing_at_all_is_0():
    true_N, predicted_N = np.array([0, 0, 1]), np.array([0, 0, 3])
    tally = tally_classes(count_confusion(true_N, predicted_N, C))
    assert tally.mean("macro").f1 == 1 / 3  # of 0, 1 and 3
    assert tally.mean("macro").f1 == f1_score(true_N, predicted_N, average="macro", zero_division=0)
    nothing = tally_classes(np.zeros((C, C), dtype=np.int64))
    assert {nothing.mean(kind).f1 for kind in ("macro", "micro", "weighted")} == {0.0}
