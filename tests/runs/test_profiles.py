"""Which steps are profiled by which ranks: as it is typed, passed on, and refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.errors import ConfigError
from lmscale.runs.profiles import (
    RANKS_OPTION,
    STEPS_OPTION,
    SUMMARY_FILE,
    ProfilePlan,
    describe_profiles,
    parse_profile,
)


@given(
    st.integers(1, 10**6),
    st.integers(0, 50),
    st.none() | st.sets(st.integers(0, 5000), min_size=1, max_size=6),
)
def test_a_plan_passed_on_by_its_words_is_the_same_plan(first, more, ranks):
    plan = ProfilePlan(
        first=first, last=first + more, ranks=None if ranks is None else tuple(sorted(ranks))
    )
    words = dict(zip(plan.words[::2], plan.words[1::2], strict=True))
    assert parse_profile(words[STEPS_OPTION], words[RANKS_OPTION]) == plan


def test_rank_0_alone_is_profiled_unless_others_are_named():
    plan = parse_profile("10:12")
    assert plan is not None and [plan.is_for(rank) for rank in (0, 1)] == [True, False]
    assert [step for step in range(20) if plan.covers(step)] == [10, 11, 12]
    every = parse_profile("1:1", "all")
    assert every is not None and every.is_for(511)
    assert parse_profile(None) is None


@pytest.mark.parametrize(
    ("steps", "ranks", "words"),
    [
        ("10", None, "--profile 10: give the first and the last step, such as 10:12"),
        ("3:2", None, "--profile 3:2: give the first"),
        ("0:2", None, "steps count from 1"),
        ("1:2", "3-1", "--profile-ranks 3-1: give numbers of ranks such as 0 or 0,8-15, or all"),
        (None, "1", "--profile-ranks 1 needs --profile A:B"),
    ],
)
def test_what_means_no_steps_or_ranks_is_refused(steps, ranks, words):
    with pytest.raises(ConfigError) as caught:
        parse_profile(steps, ranks)
    assert words in str(caught.value)


def test_steps_and_ranks_that_a_run_does_not_have_are_told_together():
    plan = ProfilePlan(first=9, last=12, ranks=(0, 4))
    plan.check(steps=12, world_size=5)
    with pytest.raises(ConfigError) as caught:
        plan.check(steps=11, world_size=4)
    assert len(caught.value.problems) == 2
    assert "the run ends with step 11" in str(caught.value)
    assert "names rank 4, but the ranks are 0 to 3" in str(caught.value)


def test_a_run_tells_where_its_profiles_lie(tmp_path):
    plan = ProfilePlan(first=3, last=1004, ranks=None)
    for rank in (0, 1):
        folder = plan.folder(tmp_path, rank)
        folder.mkdir(parents=True)
        (folder / SUMMARY_FILE).write_text("#")
    ProfilePlan(first=7, last=8).folder(tmp_path, 0).mkdir(parents=True)  # has come to nothing
    first = plan.folder(tmp_path, 0) / SUMMARY_FILE
    assert list(describe_profiles(tmp_path)) == [f"steps 3 to 1,004: {first}, and of 1 other rank"]
