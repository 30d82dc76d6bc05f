"""A sample's random numbers are its own, whoever asks for them and with which others."""

from __future__ import annotations

import numpy as np
import pytest

from lmscale.objective.draws import draw_words
from lmscale.stream.order import philox_key

KEY = philox_key("a test", 1)


@pytest.mark.parametrize("words", [1, 4, 7])
@pytest.mark.parametrize("first", [0, 10**9, 2**62])
def test_a_sample_s_words_depend_on_its_number_alone(words, first):
    whole = draw_words(KEY, np.arange(first, first + 12), words)
    assert whole.shape == (12, words)
    parts = [draw_words(KEY, np.arange(first + a, first + b), words) for a, b in ((0, 5), (5, 12))]
    assert np.array_equal(np.concatenate(parts), whole)
    order = np.array([7, 2, 3, 4, 11, 7])
    assert np.array_equal(draw_words(KEY, first + order, words), whole[order])


def test_no_two_samples_and_no_two_keys_share_words():
    words = draw_words(KEY, np.arange(1000), 8)
    assert len(np.unique(words)) == 8000
    assert not np.isin(draw_words(philox_key("a test", 2), np.arange(1000), 8), words).any()


def test_the_words_are_numpy_s_raw_philox_words_for_ever():
    raw = np.random.Philox(key=KEY, counter=[3 * 2, 0, 0, 0]).random_raw(8)
    assert draw_words(KEY, np.array([3]), 7)[0].tolist() == raw[:7].tolist()


def test_of_no_samples_there_are_no_words():
    assert draw_words(KEY, np.arange(0), 5).shape == (0, 5)
