import signal

import pytest

from launcher.outcome import Outcome, RankEnd, judge

TRACEBACK = "Traceback (most recent call last):\n  File x\nValueError: the real reason\n"
RESET = "RuntimeError: [enforce fail] Connection closed by peer [127.0.0.1]:4242\n"


def end(rank, code, ended_at=0.0, was_told=False):
    return RankEnd(rank=rank, code=code, ended_at=ended_at, was_told=was_told)


@pytest.mark.parametrize(
    ("codes", "expected"), [([0, 0], 0), ([75, 75], 75), ([75, 0], 75), ([0], 0)]
)
def test_ranks_that_end_well_say_nothing(codes, expected):
    ends = [end(rank, code) for rank, code in enumerate(codes)]
    assert judge(ends) == Outcome(exit_code=expected)


@pytest.mark.parametrize("code", [2, 76])
def test_an_error_that_rank_0_explained_is_not_repeated(code):
    outputs = {1: ("r1.out", "error: no\n")}
    assert judge([end(1, code, 0.0), end(0, code, 0.5)], outputs=outputs) == Outcome(exit_code=code)


def test_another_ranks_own_words_are_shown_from_error_on():
    outputs = {1: ("r1.out", "loading\nerror: shard x is cut\nsecond line\n")}
    outcome = judge([end(0, 1, 0.1), end(1, 2, 0.4)], outputs=outputs)
    assert outcome.exit_code == 2
    assert outcome.problems == (
        "rank 1 ended with exit code 2. The end of r1.out:\n  error: shard x is cut\n  second line",
    )


def test_a_failure_that_may_pass_is_shown_like_a_mistake_and_ends_with_1():
    outputs = {1: ("r1.out", "loading\nerror: a loader worker was killed\n")}
    outcome = judge([end(0, -15, 0.5, was_told=True), end(1, 1, 0.1)], outputs=outputs)
    assert outcome.exit_code == 1
    assert outcome.problems == (
        "rank 1 ended with exit code 1. The end of r1.out:\n  error: a loader worker was killed",
    )


def test_the_first_to_fail_is_the_culprit():
    outputs = {1: ("r1.out", TRACEBACK), 2: ("r2.out", "late\n")}
    outcome = judge([end(0, 1, 9.0), end(1, 1, 5.0), end(2, 2, 8.0)], outputs=outputs)
    assert outcome.exit_code == 1
    assert "rank 1 ended with exit code 1" in outcome.problems[0]
    assert "ValueError: the real reason" in outcome.problems[0]


def test_within_a_moment_a_lost_connection_is_not_the_cause():
    outputs = {1: ("r1.out", RESET), 2: ("r2.out", TRACEBACK)}
    outcome = judge([end(0, 1, 0.0), end(1, 1, 0.1), end(2, 1, 0.2)], outputs=outputs)
    assert outcome.problems[0].startswith("rank 2")


def test_when_the_others_only_lost_the_connection_rank_0_has_said_why():
    outcome = judge([end(0, 1, 0.2), end(1, 1, 0.1)], outputs={1: ("r1.out", RESET)})
    assert outcome.problems == ("rank 0 ended with exit code 1. What it said is above.",)


def test_a_killed_rank_is_named_with_a_guess():
    outputs = {1: ("r1.out", "")}
    outcome = judge([end(0, 1, 0.0), end(1, -9, 0.1)], outputs=outputs)
    assert outcome.exit_code == 1
    assert outcome.problems == ("rank 1 was killed by SIGKILL (out of memory?). r1.out is empty.",)


def test_ranks_that_were_told_to_end_are_not_judged():
    outcome = judge([end(0, -15, 3.0, was_told=True), end(1, -11, 1.0)])
    assert outcome.problems == ("rank 1 was killed by SIGSEGV. What it said is above.",)


def test_a_rank_that_a_forwarded_signal_killed_before_it_listened_lost_nothing():
    ends = [end(0, -15, 0.0), end(1, -9, 6.0, was_told=True)]
    assert judge(ends, forwarded=[signal.SIGTERM]) == Outcome(exit_code=75)


def test_a_failure_while_stopping_is_still_a_failure():
    ends = [end(0, 2, 0.0), end(1, 75, 0.1)]
    assert judge(ends, forwarded=[signal.SIGTERM]).exit_code == 2


def test_two_interrupts_end_like_an_interrupted_program():
    interrupts = [signal.SIGINT, signal.SIGINT]
    assert judge([end(0, 130), end(1, -9)], forwarded=interrupts) == Outcome(exit_code=130)
    assert judge([end(0, 75), end(1, 75)], forwarded=interrupts) == Outcome(exit_code=75)


def test_ranks_that_would_not_end_are_named():
    outcome = judge([end(0, 75), end(1, -9, was_told=True)], overdue={1: "was still running."})
    assert outcome == Outcome(exit_code=1, problems=("rank 1 was still running.",))


@pytest.mark.parametrize("code", [1, 2, -6])
@pytest.mark.parametrize("ended_at", [-0.01, 0.6])
def test_ranks_that_lost_a_peer_stopped_while_coming_up_are_not_at_fault(code, ended_at):
    ends = [end(0, -15, 0.0), end(1, code, ended_at), end(2, -15, 1.1, was_told=True)]
    outputs = {1: ("r1.out", RESET)}
    assert judge(ends, forwarded=[signal.SIGTERM], outputs=outputs) == Outcome(exit_code=75)


@pytest.mark.parametrize(("code", "ended_at"), [(2, -3.0), (76, 0.1), (-9, 0.1), (-11, 0.1)])
def test_what_a_stopped_peer_does_not_explain_is_still_a_failure(code, ended_at):
    ends = [end(0, -15, 0.0), end(1, code, ended_at)]
    assert judge(ends, forwarded=[signal.SIGTERM]).exit_code not in (0, 75)
