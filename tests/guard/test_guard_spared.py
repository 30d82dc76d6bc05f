"""What retention keeps beside its rule: what the guard may go back to."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from guard_cases import report
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmscale.checkpoint.retention import Candidate, Retention
from lmscale.config import RunConfig
from lmscale.config.safety import CheckpointConfig, GuardConfig
from lmscale.guard.divergence import find_rewindable, plan_spared, reach_of
from lmscale.guard.guard import Guard, RewindRequest

STEPS = (1200, 1150, 1100, 1050, 900, 100)


def config_of(**sections) -> RunConfig:
    tree = {
        "run": {"name": "test"},
        "train": {"steps": 5000},
        "guard": {"jump_steps": 16},
    }
    return RunConfig.model_validate({**tree, **sections})


def test_a_rewinds_target_and_its_successor_are_spared():
    assert plan_spared(config_of(), num_rewinds=0)(STEPS, 1200) == {"rewind": (1050, 1100)}


def test_a_guard_that_stops_goes_back_to_nothing():
    config = config_of(guard={"on_divergence": "stop"})
    assert plan_spared(config, num_rewinds=0)(STEPS, 1200) == {"rewind": ()}


@pytest.mark.parametrize(
    ("num_rewinds", "is_spared"), [(0, True), (1, True), (2, False), (3, False)]
)
def test_nothing_is_spared_for_a_rewind_that_the_guard_may_not_make_any_more(
    num_rewinds, is_spared
):
    config = config_of(guard={"max_rewinds": 2})
    assert bool(plan_spared(config, num_rewinds=num_rewinds)(STEPS, 1200)) == is_spared


@pytest.mark.parametrize(("newest", "is_spared"), [(4999, True), (5000, False), (5001, False)])
def test_once_all_steps_are_done_nothing_is_spared(newest, is_spared):
    assert bool(plan_spared(config_of(), num_rewinds=0)(STEPS, newest)) == is_spared


# For a rewind


@dataclass(frozen=True)
class Saves:
    """A run that saves again and again, and what it keeps."""

    ways: tuple[int, ...]  # steps from one save to the next
    bad: frozenset[int]  # which of them, counted from 0, are not finite
    keep_last: int
    keep_every: int
    guard: GuardConfig


class Steps(dict):
    """As much of a place as retention asks: step → whether its checkpoint is good."""

    def list_steps(self, *, committed=True):
        return sorted(self, reverse=True) if committed else []

    def delete(self, step):
        del self[step]

    def look(self, step):
        return Candidate(step=step, is_good=self[step])


SAVES = st.builds(
    Saves,
    ways=st.lists(st.integers(1, 60), min_size=1, max_size=80).map(tuple)
    | st.builds(lambda every, count: (every,) * count, st.integers(1, 60), st.integers(1, 200)),
    bad=st.frozensets(st.integers(0, 80), max_size=5),
    keep_last=st.integers(1, 4),
    keep_every=st.sampled_from([0, 0, 7, 100]),
    guard=st.builds(
        GuardConfig,
        jump_steps=st.integers(1, 300),
        max_nonfinite_steps=st.integers(1, 250),
        spike_steps=st.integers(1, 5),
    ),
)


@settings(max_examples=80, deadline=None)
@given(saves=SAVES)
@example(Saves((100,) * 40, frozenset(), 3, 0, GuardConfig(jump_steps=500)))
@example(Saves((2,) * 300, frozenset(), 2, 0, GuardConfig()))
@example(Saves((1,) * 300, frozenset(), 1, 0, GuardConfig()))
def test_as_soon_as_a_checkpoint_can_be_old_enough_for_a_rewind_there_always_is_one(saves):
    """``find_rewindable`` says how old it may be, and that it takes one checkpoint more."""
    reach, place, step, good = reach_of(saves.guard), Steps(), 0, []
    config = CheckpointConfig(keep_last=saves.keep_last, keep_every_steps=saves.keep_every)

    def spare(steps, newest):
        return {"rewind": find_rewindable(steps, newest=newest, config=saves.guard)}

    for number, way in enumerate(saves.ways):
        step += way
        place[step] = number not in saves.bad
        if not place[step]:
            continue  # as the saver does
        good.append(step)
        kept_to = Retention(place, config, Path("nowhere"), spare=spare)
        kept_to._look = place.look
        kept_to.delete_old(newest=step)
        longest = max(b - a for a, b in zip([good[0], *good], good, strict=False))
        if good[0] <= step + 1 - reach:
            target = max(s for s in place if place[s] and s <= step + 1 - reach)
            assert step - target < 2 * reach + longest
        kept = [s for s in place if not (saves.keep_every and s % saves.keep_every == 0)]
        assert sum(place[s] for s in kept) <= saves.keep_last + 2


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["good", "not finite", "high norm"]), min_size=51, max_size=150),
    jump=st.integers(1, 150),
)
@example(["not finite"] * 30 + ["high norm"] * 21, 150)  # the last severe one is not the last
@example(["not finite"] * 30 + ["good"] * 49 + ["not finite"] * 21, 1)
def test_no_divergence_reaches_back_further_than_what_is_kept_for_it(kinds, jump):
    config = GuardConfig(jump_steps=jump, max_nonfinite_steps=31)
    guard = Guard(config, minimum_loss_scale=1.0, vocab_size=512)
    for step, kind in enumerate([*["good"] * 200, *kinds], start=1):
        loss = math.nan if kind == "not finite" else 3.0
        norm = 100.0 if kind == "high norm" else 1.0
        try:
            guard(report(step, loss=loss, gradient_norm=norm))
        except RewindRequest as request:
            assert step - request.divergence.not_after_step <= reach_of(config)
            return


def test_a_run_that_does_not_rewind_keeps_nothing_for_it():
    stops = GuardConfig(on_divergence="stop")
    assert find_rewindable([2, 4], newest=400, config=stops) == ()
    assert find_rewindable([2, 4], newest=400, config=GuardConfig()) == (4,)
    assert find_rewindable([], newest=400, config=GuardConfig()) == ()
