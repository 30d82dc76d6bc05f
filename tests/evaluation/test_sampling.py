"""The filters on the logits keep what they say, and draws have the right frequencies."""

from __future__ import annotations

import math

import pytest
import torch

from lmscale.errors import ConfigError
from lmscale.evaluation.generate import keep_top_k, keep_top_p, next_tokens, penalise_repetition
from lmscale.evaluation.sampling import Sampling


def kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero()[:, 0].tolist()


LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
NOTHING_SEEN = torch.zeros(1, 4, dtype=torch.bool)


def test_top_k_keeps_exactly_k_even_among_equals():
    assert kept(keep_top_k(LOGITS, 2)) == [1, 3]
    assert kept(keep_top_k(LOGITS, 99)) == [0, 1, 2, 3]
    assert kept(keep_top_k(torch.zeros(1, 5), 3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("p", "ids"), [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.75, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p, ids):
    assert kept(keep_top_p(LOGITS, p)) == ids


def test_the_repetition_penalty_lowers_seen_ids_whatever_their_sign():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]
    assert penalise_repetition(logits, seen, 1.0) is logits


def test_draws_follow_the_probabilities():
    generator = torch.Generator().manual_seed(3)
    rows = LOGITS.expand(20_000, 4)
    drawn = next_tokens(rows, NOTHING_SEEN.expand(20_000, 4), Sampling(), generator)
    share = drawn.bincount(minlength=4) / 20_000
    # five standard deviations of a share of 0.5 among 20,000
    torch.testing.assert_close(share, LOGITS[0].exp(), rtol=0, atol=5 * 0.5 / math.sqrt(20_000))


def test_a_low_temperature_is_greedy():
    generator = torch.Generator().manual_seed(3)
    rows, seen = LOGITS.expand(100, 4), NOTHING_SEEN.expand(100, 4)
    cold = next_tokens(rows, seen, Sampling(temperature=0.01), generator)
    greedy = next_tokens(rows, seen, Sampling(is_greedy=True), generator)
    assert cold.tolist() == greedy.tolist() == [1] * 100


def test_all_bad_settings_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=0, top_k=0, top_p=1.5, repetition_penalty=-1, seed=-1)
    assert len(caught.value.problems) == 5
    assert "use --greedy" in str(caught.value)
