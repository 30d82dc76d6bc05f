"""What a profiler recorded, added up: whose time is whose, and what is shown of it."""

from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from lmscale.train.profile_page import render_lines, render_page
from lmscale.train.profile_summary import (
    Allocation,
    Event,
    Recording,
    fold_layers,
    summarize,
)

NODE = "autograd::engine::evaluate_function: MmBackward0"
# A step of two seconds: a forward pass of two blocks, and a backward pass on another thread.
STEP = [
    Event("phase: forward", 1, 0.0, 1.0),
    Event("module: blocks.0", 1, 0.0, 0.4),
    Event("module: blocks.0.qkv", 1, 0.1, 0.3),
    Event("aten::mm", 1, 0.1, 0.3, sequence=7),
    Event("module: blocks.1", 1, 0.4, 0.9),
    Event("aten::mm", 1, 0.5, 0.8, sequence=8),
    Event("phase: backward", 1, 1.0, 2.0),
    Event(NODE, 2, 1.1, 1.3, sequence=8, forward_thread=1),
    Event("aten::mm", 2, 1.1, 1.3),
    Event(NODE, 2, 1.3, 1.9, sequence=7, forward_thread=1),
    Event("aten::mm", 2, 1.3, 1.9),
]


def summary_of(events, **more):
    return summarize(Recording(title="a run", steps=1, events=events, **more))


def rows_of(rows):
    return {row.name: row for row in rows}


def test_time_is_that_of_the_innermost_module_and_layers_are_one_row():
    modules = rows_of(summary_of(STEP).modules)
    assert modules["blocks.*.qkv"].forward_seconds == approx(0.2)
    assert modules["blocks.*"].forward_seconds == approx(0.2 + 0.5)  # without what is inside
    assert modules["blocks.*"].calls == 2


def test_a_backward_pass_counts_for_the_module_that_it_goes_back_through():
    modules = rows_of(summary_of(STEP).modules)
    assert modules["blocks.*.qkv"].backward_seconds == approx(0.6)
    assert modules["blocks.*"].backward_seconds == approx(0.2)


def test_what_is_computed_again_in_the_backward_pass_is_backward_time_of_its_own_module():
    again = [Event("module: blocks.1.up", 2, 1.4, 1.6), Event("aten::gelu", 2, 1.4, 1.6)]
    modules = rows_of(summary_of([*STEP, *again]).modules)
    assert modules["blocks.*.up"].backward_seconds == approx(0.2)
    assert modules["blocks.*.qkv"].backward_seconds == approx(0.4)


def test_phases_follow_one_another_and_tell_the_time_of_the_wall():
    summary = summary_of(STEP)
    assert [(row.name, row.wall_seconds) for row in summary.phases] == [
        ("forward", approx(1.0)),
        ("backward", approx(1.0)),
    ]
    assert summary.wall_seconds == approx(2.0)
    assert summary.busy_seconds == approx(0.2 + 0.3 + 0.8)  # what threads do at once counts once


def test_where_kernels_ran_their_time_counts_and_not_that_of_their_launch():
    kernels = (("gemm", 0.01), ("gemm", 0.02))
    events = [event._replace(kernels=kernels) if event.sequence == 7 else event for event in STEP]
    summary = summary_of(events, device_spans=[(0.2, 0.25), (0.24, 0.3)])
    assert summary.has_kernels and summary.busy_seconds == approx(0.1)
    assert [(row.name, row.calls) for row in summary.kernels] == [("gemm", 4)]
    assert rows_of(summary.modules)["blocks.*.qkv"].forward_seconds == approx(0.03)
    assert "the device is busy for 5% of it" in render_lines(summary)[0]


def test_allocations_say_which_operation_of_which_module_took_them():
    taken = [Allocation(100, 0.2, 1), Allocation(-100, 0.25, 1), Allocation(60, 0.6, 1)]
    summary = summary_of(STEP, allocations=[*taken, Allocation(60, 0.7, 1)])
    assert [tuple(row) for row in summary.allocations] == [
        (100, 1, "aten::mm", "blocks.*.qkv", "forward"),
        (60, 2, "aten::mm", "blocks.*", "forward"),
    ]
    assert summary.grown_bytes == 120


def test_the_page_names_every_part_and_the_lines_the_largest_ones():
    summary = summary_of(STEP, allocations=[Allocation(2**20, 0.2, 1)])
    page, lines = render_page(summary), render_lines(summary)
    for text in ("by phase", "by module", "by operation", "largest allocations", "1.05 MB"):
        assert text in page
    assert lines[1] == "phases: forward 50%, backward 50%"
    assert lines[-1].endswith("has 1.05 MB (aten::mm, blocks.*.qkv, forward)")


def test_numbers_of_layers_are_left_out_of_names_wherever_they_stand():
    assert fold_layers("blocks.11.attention") == "blocks.*.attention"
    assert fold_layers("encoder.blocks.3") == "encoder.blocks.*"
    assert fold_layers("head") == "head"


@st.composite
def nested(draw, start=0.0, end=1.0, depth=0):
    """Events that lie in one another, as those of a thread do."""
    name = draw(st.sampled_from(["aten::mm", "module: a", "module: b.1", "aten::add"]))
    events = [Event(name, 1, start, end)]
    count = draw(st.integers(0, 2)) if depth < 3 else 0
    for number in range(count):
        width = (end - start) / count
        inside = nested(start + number * width, start + (number + 0.9) * width, depth + 1)
        events += draw(inside)
    return events


@given(nested())
def test_no_time_is_lost_or_counted_twice(events):
    summary = summary_of([Event("phase: forward", 1, 0.0, 1.0), *events])
    assert sum(row.seconds for row in summary.modules) == approx(1.0)
    assert sum(row.busy_seconds for row in summary.phases) == approx(1.0)
