import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.runs.stop import StoppedError
from lmscale.train import votes
from lmscale.train.votes import (
    DATA_ERROR,
    LEASE_LOST,
    RANKS_DIFFER,
    SAVE_FAILED,
    SAVE_REASONS,
    STOP_REASONS,
    StopPoll,
    cast_votes,
    count_votes,
    first_reason,
    plan_interval,
)


@given(reasons=st.lists(st.sampled_from([None, *STOP_REASONS]), min_size=1, max_size=9))
def test_all_ranks_count_the_first_reason_in_the_order_of_their_weight(reasons):
    votes = [cast_votes([reason], STOP_REASONS) for reason in reasons]
    summed = [sum(column) for column in zip(*votes, strict=True)]
    found = [reason for reason in STOP_REASONS if reason in reasons]
    assert first_reason(summed) == (found[0] if found else None)


def test_a_lost_lease_outweighs_all_else_and_an_error_every_request():
    assert STOP_REASONS[0] == LEASE_LOST
    assert set(STOP_REASONS[1:4]) == {RANKS_DIFFER, SAVE_FAILED, DATA_ERROR}


@given(asked=st.lists(st.lists(st.sampled_from(SAVE_REASONS)), min_size=1, max_size=5))
def test_a_save_is_made_for_every_reason_that_any_rank_has(asked):
    votes = [cast_votes(reasons, SAVE_REASONS) for reasons in asked]
    summed = [sum(column) for column in zip(*votes, strict=True)]
    assert set(count_votes(summed, SAVE_REASONS)) == {
        reason for reasons in asked for reason in reasons
    }


@given(interval=st.integers(1, 10_000), seconds=st.floats(0, 1e6))
def test_the_next_poll_comes_after_about_a_second_and_never_much_later(interval, seconds):
    planned = plan_interval(interval, seconds)
    assert 1 <= planned <= 2 * interval
    a_call = seconds / interval
    assert planned == 1 or planned * a_call <= votes.POLL_SECONDS * 1.001


def polled_at(seconds_a_call, calls, monkeypatch):
    """The calls that asked, when each of them takes so long."""
    done = 0
    asked = []
    monkeypatch.setattr(votes.time, "monotonic", lambda: done * seconds_a_call)
    poll = StopPoll(lambda: asked.append(done))
    for _ in range(calls):
        done += 1
        poll()
    return asked


def test_quick_work_is_asked_about_more_and_more_rarely_and_slow_work_every_time(monkeypatch):
    quick = polled_at(0.01, 1000, monkeypatch)
    gaps = [after - before for before, after in itertools.pairwise(quick)]
    assert gaps[:3] == [2, 4, 8]
    assert max(gaps) == 100  # a second
    assert polled_at(5.0, 5, monkeypatch) == [1, 2, 3, 4, 5]


def test_a_request_is_raised_by_its_name():
    poll = StopPoll(lambda: "SIGUSR1")
    for ask in (poll, poll.now):
        with pytest.raises(StoppedError) as caught:
            ask()
        assert caught.value.reason == "SIGUSR1"
