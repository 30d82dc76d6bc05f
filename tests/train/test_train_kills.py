"""A few kills of kills.py; `python tests/kills.py --kills 100 --seed 1` does it at length."""

import pytest
from kills import MOMENTS, VICTIMS, plan_attempt, run_kills

KILLS, SEED = 3, 150


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_uses_every_sample_once(tiny_data, tmp_path, capsys):
    (tmp_path / "data").symlink_to(tiny_data)
    run_kills(tmp_path, kills=KILLS, seed=SEED)
    assert f"{KILLS} kills in" in capsys.readouterr().out


def test_the_short_form_kills_inside_a_save_and_all_kinds_of_victims():
    plans = [plan_attempt(SEED, number) for number in range(1, KILLS + 1)]
    assert {plan.victim for plan in plans} == set(VICTIMS)
    assert "saving" in {plan.moment for plan in plans}


def test_the_long_form_draws_every_kind_of_moment_rank_count_and_stage():
    plans = [plan_attempt(1, number) for number in range(1, 101)]
    assert {plan.moment for plan in plans} == {name for name, _ in MOMENTS}
    assert {plan.num_ranks for plan in plans} == {1, 2, 3, 4}
    assert {plan.stage for plan in plans} == {0, 1, 2, 3}
