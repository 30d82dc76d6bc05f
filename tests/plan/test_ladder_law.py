"""A law fitted to small runs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.errors import DataError
from lmscale.plan.ladder_law import Point, fit_law

SIZES = [3e5, 6e5, 1.2e6, 2.4e6, 4.8e6]
TOKENS = [1e6, 2e6, 4e6, 8e6]


def make_points(floor, a, alpha, b, beta, *, noise=0.0, seed=0, tokens=TOKENS):
    draw = np.random.default_rng(seed)
    return [
        Point(n, d, (floor + a / n**alpha + b / d**beta) * math.exp(noise * draw.normal()))
        for n in SIZES
        for d in tokens
    ]


@settings(max_examples=5, deadline=None)
@given(
    floor=st.floats(1.0, 2.5),
    lack=st.floats(0.5, 3.0),
    alpha=st.floats(0.2, 0.6),
    beta=st.floats(0.2, 0.6),
)
def test_losses_that_follow_a_law_give_the_law_back(floor, lack, alpha, beta):
    a, b = lack * 1e6**alpha, lack * 2e6**beta
    fit = fit_law(make_points(floor, a, alpha, b, beta), draws=2)
    larger, longer = 2e7, 3e7
    expected = floor + a / larger**alpha + b / longer**beta
    assert fit.law.loss(larger, longer) == pytest.approx(expected, rel=2e-3)
    assert max(map(abs, fit.residuals)) < 1e-3


def test_the_interval_holds_what_a_larger_run_comes_to():
    true = dict(floor=1.7, a=350.0, alpha=0.35, b=600.0, beta=0.37)
    inside = 0
    for seed in range(5):
        fit = fit_law(make_points(**true, noise=0.004, seed=seed), draws=40)
        told = fit.predict(1e7, 1.6e7)
        assert told.low < told.high < 1.2 * told.low
        inside += told.low <= 1.7 + 350 / 1e7**0.35 + 600 / 1.6e7**0.37 <= told.high
    assert inside >= 4
    assert told.doubts == (
        "1e+07 parameters are outside its 3e+05 to 4.8e+06",
        "1.6e+07 tokens are outside its 1e+06 to 8e+06",
    )


def test_one_run_that_went_wrong_does_not_bend_the_law():
    points = make_points(1.7, 350.0, 0.35, 600.0, 0.37)
    broken = [points[0], points[1]._replace(loss=points[1].loss * 1.2), *points[2:]]
    expected = fit_law(points, draws=1).law.loss(1e7, 1.6e7)
    assert fit_law(broken, draws=1).law.loss(1e7, 1.6e7) == pytest.approx(expected, rel=0.01)


def test_runs_over_the_same_tokens_give_a_law_of_sizes_alone():
    fit = fit_law(make_points(1.7, 350.0, 0.35, 600.0, 0.37, tokens=[2e6]), draws=2)
    assert fit.law.of_tokens == 0
    expected = 1.7 + 350 / 1e7**0.35 + 600 / 2e6**0.37
    assert fit.law.loss(1e7, 2e6) == pytest.approx(expected, rel=5e-3)


def test_two_sizes_are_no_law():
    with pytest.raises(DataError, match="2 different sizes; a law needs 3"):
        fit_law([Point(1e6, 1e6, 3.0), Point(2e6, 1e6, 2.9)])
