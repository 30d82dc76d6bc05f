import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config import plan_batches
from lmscale.config.data import BatchConfig
from lmscale.errors import ConfigError


@pytest.mark.parametrize(
    ("global_windows", "micro_windows", "data_ranks", "micro", "accumulation"),
    [
        (512, 8, 1, 8, 64),
        (512, 8, 64, 8, 1),
        (512, 8, 512, 1, 1),
        (512, 1000, 4, 128, 1),
        (24, 4, 2, 4, 3),
        (24, 4, 3, 4, 2),
        (24, 5, 1, 4, 6),  # 5 does not divide 24; the largest divisor below it is taken
        (14, 4, 2, 1, 7),
        (1, 1, 1, 1, 1),
    ],
)
def test_a_step_is_dealt_evenly(global_windows, micro_windows, data_ranks, micro, accumulation):
    plan = plan_batches(
        global_windows=global_windows, micro_windows=micro_windows, data_ranks=data_ranks
    )
    assert (plan.micro_windows, plan.accumulation) == (micro, accumulation)
    assert plan.windows_per_rank == micro * accumulation


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 600))
def test_the_step_is_the_same_whatever_its_division(global_windows, micro_windows, data_ranks):
    given_values = {
        "global_windows": global_windows,
        "micro_windows": micro_windows,
        "data_ranks": data_ranks,
    }
    if global_windows % data_ranks:
        with pytest.raises(ConfigError):
            plan_batches(**given_values)
        return
    plan = plan_batches(**given_values)
    assert plan.data_ranks * plan.accumulation * plan.micro_windows == global_windows
    assert 1 <= plan.micro_windows <= micro_windows
    share = global_windows // data_ranks
    larger = range(plan.micro_windows + 1, min(micro_windows, share) + 1)
    assert all(share % micro for micro in larger)


def test_a_batch_that_does_not_divide_is_told_with_what_would():
    with pytest.raises(ConfigError) as caught:
        plan_batches(global_windows=100, micro_windows=8, data_ranks=24)
    assert str(caught.value) == (
        "batch.global_windows = 100 cannot be dealt evenly to 24 ranks. "
        "Use 96 or 120 windows, or 5, 10, 20, 25 ranks."
    )


def test_fewer_windows_than_ranks_are_told_with_the_least_that_would_do():
    with pytest.raises(ConfigError, match=r"Use 8 windows, or 1, 2, 4 ranks\."):
        plan_batches(global_windows=4, micro_windows=8, data_ranks=8)


@pytest.mark.parametrize(
    ("global_windows", "micro_windows", "data_ranks", "words"),
    [
        (25, 4, 1, "25 windows, which no number near batch.micro_windows = 4 divides: it takes 1"),
        (25, 4, 1, " 24 or 28 windows would be taken 4 at a time"),
        (28, 4, 4, " 16 or 32 windows would be taken 4 at a time"),
        (24, 5, 1, None),  # 4 at a time
        (2, 8, 2, None),  # 1 at a time is all that there is
    ],
)
def test_micro_batches_much_smaller_than_asked_for_are_told(
    global_windows, micro_windows, data_ranks, words
):
    batch = BatchConfig(global_windows=global_windows, micro_windows=micro_windows)
    told = batch.describe_small(batch.plan(data_ranks))
    assert told is None if words is None else words in told
