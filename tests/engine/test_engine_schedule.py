"""Learning rates are functions of the step alone."""

import pytest

from lmscale.config.training import ScheduleConfig
from lmscale.engine.schedule import learning_rate

PEAK = 3e-4


def rates(total_steps, **settings):
    """The learning rate of every step, as a part of the peak; index 0 is step 1."""
    schedule = ScheduleConfig(**settings)
    return [
        learning_rate(schedule, peak=PEAK, step=step, total_steps=total_steps) / PEAK
        for step in range(1, total_steps + 1)
    ]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup_steps", [1, 4, 20])
def test_the_warm_up_is_linear_and_reaches_the_peak_at_its_last_step(kind, warmup_steps):
    warm = rates(40, kind=kind, warmup_steps=warmup_steps)[:warmup_steps]
    assert warm == pytest.approx([step / warmup_steps for step in range(1, warmup_steps + 1)])


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("final_ratio", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_the_last_step_has_the_final_rate(kind, final_ratio, warmup_steps):
    of_run = rates(50, kind=kind, warmup_steps=warmup_steps, final_ratio=final_ratio)
    assert of_run[-1] == pytest.approx(final_ratio)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_rates_stay_between_the_ends_and_never_rise_after_the_warm_up(
    kind, total_steps, warmup_steps
):
    of_run = rates(total_steps, kind=kind, warmup_steps=warmup_steps, final_ratio=0.1)
    assert all(0.1 - 1e-12 <= rate <= 1 for rate in of_run)
    after = of_run[warmup_steps:]
    assert after == sorted(after, reverse=True)


def test_a_constant_rate_is_constant():
    assert rates(9, kind="constant", warmup_steps=0) == [1.0] * 9


def test_a_linear_decay_is_a_line():
    assert rates(10, kind="linear", final_ratio=0.0) == pytest.approx(
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    )


def test_a_cosine_is_half_way_down_in_the_middle_and_flat_at_its_ends():
    of_run = rates(100, kind="cosine", final_ratio=0.2)
    assert of_run[49] == pytest.approx(0.6)
    assert of_run[24] + of_run[74] == pytest.approx(1.2)
    assert 1 - of_run[0] < 0.001 and of_run[-2] - of_run[-1] < 0.001


def test_warm_up_stable_decay_stays_and_falls_linearly_over_its_last_steps():
    of_run = rates(20, kind="wsd", warmup_steps=4, decay_steps=5, final_ratio=0.0)
    assert of_run[3:15] == [1.0] * 12
    assert of_run[14:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])


def test_warm_up_stable_decay_falls_over_a_tenth_of_the_run_unless_told():
    of_run = rates(100, kind="wsd", final_ratio=0.0)
    assert of_run[89] == 1.0 and of_run[90] == pytest.approx(0.9)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_shorter_decay_ends_early_and_stays_at_the_final_rate(kind):
    of_run = rates(30, kind=kind, warmup_steps=5, decay_steps=10, final_ratio=0.1)
    assert of_run[14] == pytest.approx(0.1)
    assert of_run[14:] == pytest.approx([0.1] * 16)
    assert of_run[13] > 0.1


def test_a_decay_longer_than_the_run_begins_right_after_the_warm_up():
    of_run = rates(10, kind="wsd", warmup_steps=2, decay_steps=100, final_ratio=0.0)
    assert of_run[1] == 1.0 and of_run[2] == pytest.approx(0.99)


def test_a_longer_run_has_the_same_rates_until_its_decay_begins():
    short = rates(50, kind="wsd", warmup_steps=5, decay_steps=10)
    long = rates(90, kind="wsd", warmup_steps=5, decay_steps=10)
    assert short[:40] == long[:40]
