"""Intervals and tests of few observations are those of scipy and of their definitions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from lmscale.metrics.chance import mean_interval, share_interval, sign_test


@given(st.integers(1, 300), st.data())
@settings(max_examples=50, deadline=None)
def test_the_interval_of_a_share_is_wilsons_and_the_sign_test_exact(count, data):
    hits = data.draw(st.integers(0, count))
    theirs = binomtest(hits, count)
    interval = theirs.proportion_ci(0.95, method="wilson")
    assert share_interval(hits, count) == pytest.approx(tuple(interval), abs=1e-12)
    assert sign_test(hits, count) == pytest.approx(theirs.pvalue, rel=1e-9)


def test_of_nothing_nothing_is_known():
    assert share_interval(0, 0) == (0.0, 1.0) and sign_test(0, 0) == 1.0


def test_a_mean_of_groups_that_are_alike_is_as_unsure_as_the_groups_are_few():
    few = [[1.0] * 100, [0.0] * 100, [0.5] * 100]
    many = [[value] for group in few for value in group]
    wide, narrow = mean_interval(few, seed=1), mean_interval(many, seed=1)
    assert wide[0] < 0.2 < 0.45 < narrow[0] < 0.5 < narrow[1] < 0.55 < 0.8 < wide[1]
    assert mean_interval(few, seed=1) == wide
