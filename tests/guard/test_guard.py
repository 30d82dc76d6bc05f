"""The guard finds what has gone wrong and nothing else, and asks for what undoes it."""

import math
import random

import pytest
from guard_cases import (
    BAD_LOSS,
    BAD_NORM,
    FULL,
    GOOD,
    INF,
    NAN,
    SPIKES,
    WINDOW,
    config,
    guard_of,
    watch,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.errors import EXIT_GUARD, GuardError, LmscaleError
from lmscale.guard.guard import Guard, RewindRequest
from lmscale.guard.state import find_limits
from lmscale.history.history import Rewind

# Steps that are not finite


def test_a_good_run_is_never_stopped():
    assert watch(guard_of(), [GOOD] * 60) == (60, None)


@pytest.mark.parametrize(
    "bad", [{"loss": NAN}, {"loss": INF}, {"gradient_norm": NAN}, {"gradient_norm": INF}]
)
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_as_many_bad_steps_in_a_row_as_allowed_stop_it(bad, limit):
    step, error = watch(guard_of(max_nonfinite_steps=limit), [GOOD, *[bad] * 9])
    assert step == 1 + limit
    assert error.exit_code == EXIT_GUARD
    how_many = "1 step was" if limit == 1 else f"{limit} steps in a row were"
    assert str(error).startswith(f"{how_many} not finite")


def test_a_good_step_in_between_begins_the_count_anew():
    bad = (BAD_LOSS, BAD_NORM)
    guard = guard_of()
    assert watch(guard, [*bad, GOOD, *bad, GOOD, *bad])[1] is None
    assert guard.figures()["guard/nonfinite_steps"] == 6


def test_the_message_names_each_step_its_figures_and_its_samples():
    step, error = watch(guard_of(), [GOOD, BAD_LOSS, BAD_NORM, BAD_LOSS])
    assert step == 4
    message = str(error)
    assert "step 2: loss nan, gradient norm 1.0, learning rate 0.0003, samples from 12" in message
    assert "step 3: loss 2.0, gradient norm inf" in message
    assert "those of step 1 and later were saved while this came up" in message
    assert "lower engine.optimizer.lr" in message


def test_fp16_may_search_its_loss_scale_but_not_below_the_smallest():
    searching = {"gradient_norm": INF, "is_skipped": True, "loss_scale": 8.0}
    guard = guard_of()
    assert watch(guard, [searching] * 30)[1] is None
    assert guard.state.window == () and guard.figures()["guard/nonfinite_steps"] == 0
    at_the_end = {**searching, "loss_scale": 1.0}
    assert watch(guard_of(), [at_the_end] * 30)[0] == 3
    assert watch(guard_of(minimum_loss_scale=8), [searching] * 30)[0] == 3
    # A search says nothing about the steps around it.
    step, error = watch(guard_of(), [BAD_LOSS, searching, BAD_LOSS, searching, BAD_LOSS])
    assert step == 5 and error is not None


# Spikes


@pytest.mark.parametrize("spike", SPIKES)
@pytest.mark.parametrize("in_a_row", [1, 3])
def test_as_many_spikes_in_a_row_as_allowed_stop_it(spike, in_a_row):
    guard = guard_of(spike_steps=in_a_row, spike_window=WINDOW)
    step, error = watch(guard, [*FULL, *[spike] * 9])
    assert step == WINDOW + in_a_row
    how_many = "1 step was a spike" if in_a_row == 1 else f"{in_a_row} steps in a row were spikes"
    assert str(error).startswith(f"{how_many}: at step {step} the ")
    assert f"loss {spike['loss']:.0f} is above" in str(error)
    assert ("gradient norm 40 is above" in str(error)) == ("gradient_norm" in spike)


def test_nothing_is_a_spike_before_the_window_is_full_or_without_a_window():
    assert watch(guard_of(), [*FULL[1:], {"loss": 90.0}, GOOD, GOOD])[1] is None
    assert watch(guard_of(spike_window=0), [*FULL, *[{"loss": 90.0}] * 50])[1] is None


def test_a_spike_alone_passes_and_does_not_move_the_median():
    guard = guard_of()
    assert watch(guard, [*FULL, *[SPIKES[0], GOOD] * 40])[1] is None
    assert {loss for loss, _ in guard.state.window} == {2.0}
    assert guard.figures() == {
        "guard/nonfinite_steps": 0,
        "guard/spike_steps": 40,
        "guard/rewinds": 0,
        "guard/jumped_samples": 0,
    }


def test_spikes_and_steps_that_are_not_finite_in_turn_are_a_divergence():
    changes = [*FULL, SPIKES[0], BAD_LOSS, SPIKES[0], BAD_NORM, SPIKES[0], BAD_LOSS]
    step, error = watch(guard_of(max_nonfinite_steps=5), changes)
    assert step == WINDOW + 5
    assert str(error).startswith("3 steps in a row were spikes")


@pytest.mark.parametrize("loss", [2.0, 1e-7, 10.8])
def test_figures_that_hardly_vary_make_no_spike_of_what_does(loss):
    changes = [{"loss": loss}] * WINDOW
    risen = [{"loss": loss * 1.2 + 0.01, "gradient_norm": 3.5}] * 20
    assert watch(guard_of(), [*changes, *risen])[1] is None


def test_a_model_without_a_gradient_is_no_divergence():
    nothing = {"gradient_norm": 0.0}
    assert watch(guard_of(), [*[nothing] * WINDOW, *[GOOD] * 20])[1] is None


def noisy(seed, level, *, noise, steps, norm_noise=0.25):
    """A loss with relative noise of normal steps, a gradient norm with heavier tails."""
    draws = random.Random(seed)
    return [
        {
            "loss": level(step / steps) * (1 + noise * draws.gauss(0, 1)),
            "gradient_norm": math.exp(norm_noise * draws.gauss(0, 1)),
        }
        for step in range(steps)
    ]


SHAPES = {
    "constant": lambda t: 2.5,
    "falling": lambda t: 2.0 + 8.8 * math.exp(-6 * t),
    "in steps downwards": lambda t: 4.0 - int(4 * t) * 0.6,
    "rising a little": lambda t: 2.0 + 0.3 * t,
    "in waves": lambda t: 2.5 + 0.2 * math.sin(40 * t),
    "nearly learnt by heart": lambda t: 3.0 * math.exp(-14 * t),
}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 1e-4, 0.01, 0.05, 0.15]),
    norm_noise=st.sampled_from([0.0, 0.1, 0.3, 0.5]),
    window=st.sampled_from([16, 32, 128]),
)
def test_noise_and_schedules_are_no_divergence(shape, seed, noise, norm_noise, window):
    guard = guard_of(spike_window=window)
    changes = noisy(seed, SHAPES[shape], noise=noise, steps=400, norm_noise=norm_noise)
    assert watch(guard, changes) == (400, None)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([1e-4, 0.01, 0.03]),
    at=st.integers(60, 200),
    kind=st.sampled_from(["loss", "gradient_norm"]),
    factor=st.floats(3, 100),
)
def test_a_true_spike_is_found_at_its_third_step(seed, noise, at, kind, factor):
    changes = noisy(seed, SHAPES["constant"], noise=noise, steps=240)
    for change in changes[at:]:
        change["loss"] = 2.5 * factor if kind == "loss" else 4.0
        if kind == "gradient_norm":
            change["gradient_norm"] = 10 * factor
    step, error = watch(guard_of(spike_window=50), changes)
    assert step == at + 3
    assert "steps in a row were spikes" in str(error)


def test_the_thresholds_are_in_standard_deviations_as_the_mad_estimates_them():
    draws = random.Random(1)
    window = [(2 + 0.1 * draws.gauss(0, 1), 5 + 2 * draws.gauss(0, 1)) for _ in range(4001)]
    limits = find_limits(window, config(spike_window=4001, spike_threshold=10.0))
    assert limits.loss == pytest.approx(2 + 10 * 0.1, rel=0.02)
    assert limits.gradient_norm == pytest.approx(5 + 10 * 2, rel=0.05)
    assert find_limits(window[1:], config(spike_window=4001)) is None


# What a divergence asks for


def test_the_window_begins_before_fp16_s_search_that_ended_in_bad_steps():
    searching = {"gradient_norm": INF, "is_skipped": True, "loss_scale": 8.0}
    at_the_end = {**searching, "loss_scale": 1.0}
    early = [GOOD, *[searching] * 16, *[GOOD] * 20]
    changes = [*early, *[searching] * 16, *[at_the_end] * 3]
    step, request = watch(rewinding(jump_steps=5), changes)
    assert step == len(changes)
    assert request.divergence.not_after_step == len(early) - 1
    assert request.divergence.jump_from_n == 12 * (len(early) - 1)
    assert request.divergence.jump_samples == 12 * (1 + 16 + 3)


def rewinding(**changes) -> Guard:
    return guard_of(on_divergence="rewind", **changes)


def rewind(number) -> Rewind:
    return Rewind(
        number=number,
        at_step=30,
        to_step=10,
        to_n=120,
        jump_from_n=168,
        jump_samples=192,
        why="a test",
        time=0.0,
    )


def test_a_divergence_asks_for_a_rewind_with_the_samples_of_the_last_steps():
    step, request = watch(rewinding(jump_steps=5), [*[GOOD] * 20, *[BAD_NORM] * 3])
    assert step == 23
    assert isinstance(request, RewindRequest)
    assert not isinstance(request, LmscaleError)
    divergence = request.divergence
    assert divergence.why == str(request) == "3 steps in a row were not finite"
    assert divergence.at_step == 23
    # Steps 19 to 23, at 12 samples each.
    assert (divergence.jump_from_n, divergence.jump_samples) == (18 * 12, 5 * 12)
    assert divergence.not_after_step == 18


def test_the_window_reaches_back_to_the_first_bad_step_and_not_before_sample_0():
    _, request = watch(rewinding(jump_steps=1), [*[GOOD] * 20, *[BAD_NORM] * 3])
    assert (request.divergence.jump_from_n, request.divergence.jump_samples) == (20 * 12, 3 * 12)
    assert request.divergence.not_after_step == 20
    _, request = watch(rewinding(jump_steps=50), [*[GOOD] * 20, *[BAD_NORM] * 3])
    assert (request.divergence.jump_from_n, request.divergence.jump_samples) == (0, 23 * 12)
    assert request.divergence.not_after_step == 0


def test_one_divergence_more_than_there_may_be_rewinds_ends_the_run():
    bad = [BAD_NORM] * 3
    for done in (0, 1):
        guard = rewinding(max_rewinds=2, rewinds=[rewind(n + 1) for n in range(done)])
        assert isinstance(watch(guard, bad)[1], RewindRequest)
    guard = rewinding(max_rewinds=2, rewinds=[rewind(1), rewind(2)])
    _, error = watch(guard, bad)
    assert isinstance(error, GuardError)
    assert "rewound 2 times, as often as guard.max_rewinds = 2 allows: from step 30 to 10" in (
        str(error)
    )
    _, error = watch(rewinding(max_rewinds=0), bad)
    assert "guard.max_rewinds = 0 allows." in str(error)
    assert guard.figures()["guard/rewinds"] == 2
