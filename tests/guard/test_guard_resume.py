"""The guard decides alike after an interruption, and under another mixture begins anew."""

import json
import logging
from types import SimpleNamespace

import pytest
from guard_cases import (
    BAD_LOSS,
    BAD_NORM,
    FULL,
    GOOD,
    HIGH_LOSS,
    HIGH_NORM,
    INF,
    SPIKES,
    VOCAB,
    WINDOW,
    config,
    guard_of,
    report,
    watch,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.errors import CheckpointError
from lmscale.stream.mixture import Segment
from lmscale.train.after_step import build_guard

STEP_KINDS = st.sampled_from(
    [
        *[GOOD] * 6,
        {"loss": 2.02},
        {"loss": 1.9, "gradient_norm": 1.4},
        BAD_LOSS,
        BAD_NORM,
        {"loss": -INF},
        *(*SPIKES, HIGH_LOSS, HIGH_NORM),
        {"gradient_norm": INF, "is_skipped": True, "loss_scale": 8.0},
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    stretches=st.lists(
        st.tuples(STEP_KINDS, st.sampled_from([1, 2, 3, 30])), min_size=1, max_size=60
    ),
    cuts=st.sets(st.integers(0, 120), max_size=30),
)
def test_an_interrupted_run_decides_exactly_as_one_that_was_not(stretches, cuts):
    changes = [*[GOOD] * 10, *(kind for kind, count in stretches for _ in range(count))]
    settings_ = {"spike_window": 12, "on_divergence": "rewind"}
    whole = guard_of(**settings_)
    at, raised = watch(whole, changes)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(changes)), len(changes)]
    state, step, found = None, 0, None
    for begin, end in zip(bounds, bounds[1:], strict=False):
        guard = guard_of(state=state, **settings_)
        step, found = watch(guard, changes[begin:end], first_step=begin + 1)
        state = json.loads(json.dumps(guard.to_json(), allow_nan=False))  # as in a manifest
        if found is not None:
            break
    assert (step, str(found)) == (at, str(raised))
    assert guard.to_json() == whole.to_json()
    if raised is not None:
        for field in ("why", "at_step", "jump_from_n", "jump_samples", "limits"):
            assert getattr(found.divergence, field) == getattr(raised.divergence, field)


def test_the_size_of_a_step_is_told_where_it_changes(caplog):
    caplog.set_level(logging.INFO, "lmscale")
    guard = guard_of(context=lambda n: {"mixture": {"a": 64}})
    for step, samples in enumerate((2, 2, 4, 8, 8), 1):
        guard(report(step, samples=samples))
    assert [record.getMessage() for record in caplog.records] == [
        "from step 3 on global_windows = 4 (before: 2): the guard's medians begin anew",
        "from step 4 on global_windows = 8 (before: 4): the guard's medians begin anew",
    ]


def test_another_mixture_is_told_by_its_shares(caplog):
    caplog.set_level(logging.INFO, "lmscale")
    first, second = {"a": 48, "b": 16}, {"a": 64}
    guard = guard_of(context=lambda n: {"mixture": second if n >= 24 else first})
    for step in (1, 2, 3):
        guard(report(step))
    assert [record.getMessage() for record in caplog.records] == [
        "from step 3 on mixture = a 100 % (before: a 75 %, b 25 %): the guard's medians begin anew"
    ]


def test_another_mixture_or_batch_begins_the_medians_anew():
    before = guard_of(context=lambda n: {"mixture": {"a": 64}})
    watch(before, FULL)
    state = before.to_json()
    same = guard_of(state=state, context=lambda n: {"mixture": {"a": 64}})
    assert watch(same, [SPIKES[0]] * 5, first_step=WINDOW + 1)[1] is not None
    other = guard_of(state=state, context=lambda n: {"mixture": {"b": 64}})
    assert watch(other, [SPIKES[0]] * 5, first_step=WINDOW + 1)[1] is None
    assert len(other.state.recent) == WINDOW + 5


def test_the_medians_begin_anew_where_another_mixture_comes_into_force_as_on_a_resume():
    """As after a rewind to before the step at which it was changed."""
    change = (WINDOW + 3) * 12

    def context(n):
        return {"mixture": {"b" if n >= change else "a": 64}}

    changes = [*FULL, {}, {}, {}, *[SPIKES[0]] * 5]
    whole = guard_of(context=context)
    assert watch(whole, changes)[1] is None
    assert len(whole.state.window) == 5, "of the new mixture alone"
    for cut in range(WINDOW, WINDOW + 6):
        before = guard_of(context=context)
        watch(before, changes[:cut])
        state = json.loads(json.dumps(before.to_json()))
        after = guard_of(state=state, context=context)
        watch(after, changes[cut:], first_step=cut + 1)
        assert after.to_json() == whole.to_json()


def test_the_guards_mixture_is_the_one_in_force_though_another_lies_ahead():
    first, second = ({"a": 48, "b": 16}, {"a": 64})
    segments = (
        Segment(start=0, quotas=first, base={}),
        Segment(start=24, quotas=second, base={}),
    )
    run = SimpleNamespace(
        config=SimpleNamespace(
            guard=config(),
            batch=SimpleNamespace(global_windows=12),
            engine=SimpleNamespace(loss_scale=SimpleNamespace(minimum=1)),
            vocab_size=VOCAB,
        ),
        stream=SimpleNamespace(segments=segments),
        guard_state=None,
        history=SimpleNamespace(rewinds=()),
    )
    guard = build_guard(run)  # pyright: ignore[reportArgumentType]
    seen = []
    for step in (1, 2, 3):
        guard(report(step))
        seen.append(guard.to_json()["context"])
    assert [context["mixture"] for context in seen] == [first, first, second]
    assert all(context["global_windows"] == 12 for context in seen)


def test_a_state_that_is_none_is_refused():
    with pytest.raises(CheckpointError, match="step 1: refused: state.guard.window.0.1 is missing"):
        guard_of(state={"window": [[1.0]]})
