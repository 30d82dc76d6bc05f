from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config import parse_config, plan_batches
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


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=3),
    st.integers(1, 9),
    st.integers(0, 40),
)
def test_the_samples_before_a_step_are_those_of_the_steps_before(gaps, last, steps):
    until = accumulate(gap for gap, _ in gaps)
    windows = [*accumulate([size for _, size in gaps] + [last])]
    rows = tuple(zip(until, windows, strict=False))
    plan = BatchConfig(global_windows=windows[-1], warmup=rows).plan(1)
    sizes = [plan.at(done).global_windows for done in range(steps)]
    assert plan.samples_before(steps) == sum(sizes)
    for done, size in enumerate(sizes):
        assert size == next((row[1] for row in rows if done < row[0]), windows[-1])


def test_a_warm_up_that_does_not_grow_or_does_not_end_is_told():
    for rows in ("[[5, 4], [5, 8]]", "[[5, 4], [9, 4]]", "[[5, 16]]"):
        with pytest.raises(ConfigError, match="batch: warmup = .*more of both"):
            parse_config(f"run: {{name: a}}\nbatch: {{global_windows: 16, warmup: {rows}}}")
    with pytest.raises(ConfigError, match="goes on until step 9, but train.steps = 9, so no step"):
        parse_config(
            "run: {name: a}\nbatch: {global_windows: 16, warmup: [[9, 4]]}\ntrain: {steps: 9}"
        )


def test_every_size_of_a_warm_up_that_cannot_be_dealt_is_told_together():
    batch = BatchConfig(global_windows=20, warmup=((5, 4), (9, 6), (11, 16)))
    with pytest.raises(ConfigError) as caught:
        batch.plan(8)
    first, second, third = caught.value.problems
    assert first.startswith("batch.warmup = 4 cannot be dealt evenly to 8 ranks. Use 8 windows")
    assert second.startswith("batch.warmup = 6 cannot be dealt evenly to 8 ranks. Use 8 windows")
    assert third.startswith("batch.global_windows = 20 cannot be dealt evenly to 8 ranks.")


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
    assert told == [] if words is None else words in told[0]


def test_micro_batches_of_a_warmup_that_are_much_smaller_are_told_too():
    batch = BatchConfig(global_windows=64, micro_windows=8, warmup=((1000, 52),))
    (told,) = batch.describe_small(batch.plan(4))
    assert told.startswith("batch.warmup: 52 gives each rank 13 windows, which no number near")
    assert "it takes 1 at a time" in told and "32 or 64 windows would be taken 8" in told
