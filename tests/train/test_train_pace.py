"""What a start says of its speed: in its first step, after two, and with every line."""

import logging
import re
from unittest.mock import MagicMock

import pytest
from guard_cases import report
from labelled_data import ENCODERS
from tiny_run import tiny_config

from lmscale.train import pace as pace_module
from lmscale.train.pace import Pace, tell_first_step


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def started(tmp_path, caplog):
    """A run of 10 steps of 12 samples that has done 4; its clock, and what is told."""
    caplog.set_level(logging.INFO, "lmscale.train.pace")

    def start(**settings):
        config = tiny_config(tmp_path, tmp_path / "run", {"train.steps": 10, **settings})
        clock = Clock()
        return Pace(config, 4, clock), clock, caplog

    return start


def do_steps(pace, clock, *steps, seconds=10.0):
    for step in steps:
        clock.now += seconds
        pace(report(step, step_seconds=seconds))


def test_a_step_tells_how_many_labels_a_second_it_learned_where_these_are_its_targets(started):
    pace, clock, told = started(**ENCODERS["classes"], **{"stream.packing": "best_fit"})
    do_steps(pace, clock, 5, seconds=60)
    assert told.messages == ["step 5 took 60 s: loss 2.0000, 5 labels/s"]


def test_the_first_step_says_what_it_took_and_the_second_one_when_the_run_ends(started):
    pace, clock, told = started()
    do_steps(pace, clock, 5, seconds=60)
    assert told.messages == ["step 5 took 60 s: loss 2.0000, 5 tokens/s"]  # of 300
    assert pace.told() == ""  # from what the first step took nothing follows
    do_steps(pace, clock, 6)
    line = r"at the speed of step 6 the run ends in 40 s \(\d{4}-.*\)"
    assert re.fullmatch(line, told.messages[1])
    do_steps(pace, clock, 7)
    assert pace.told() == "  eta 30 s"
    do_steps(pace, clock, 8, 9, 10)
    assert pace.told() == "" and len(told.messages) == 2


def test_a_first_step_that_compiled_or_waited_for_its_data_says_so(started):
    pace, _, told = started(**{"engine.compile": True})
    pace(report(5, step_seconds=90.0, data_seconds=65.0))
    words = (
        "step 5 took 90 s after 1 min 5 s of waiting for its data, torch.compile's work included"
    )
    assert told.messages[0].startswith(words)


@pytest.mark.parametrize(
    ("phase", "compiles", "doing"),
    [
        ("data", True, "waiting for its data"),
        ("forward", False, "in the forward pass"),
        ("forward", True, "in the forward pass, which torch.compile makes first"),
        ("somewhere", False, "somewhere"),
    ],
)
def test_a_long_first_step_says_what_it_is_at(started, monkeypatch, phase, compiles, doing):
    pace, _, told = started(**{"engine.compile": compiles})
    monkeypatch.setattr(pace_module.heartbeat, "current_phase", lambda: phase)
    pace.has_begun = MagicMock()
    pace.has_begun.wait.side_effect = [False, False, True]
    tell_first_step(pace)
    expected = [f"step 5 is not done after {passed}: {doing}" for passed in ("20 s", "40 s")]
    assert told.messages == expected


def test_a_run_whose_lines_are_far_apart_says_now_and_then_how_far_it_is(started):
    pace, clock, told = started()
    do_steps(pace, clock, 5, 6, 7, 8, seconds=200)
    assert told.messages[2:] == ["step 7/10  eta 10 min"]


def test_the_estimate_follows_the_speed_of_the_last_minutes(started):
    pace, clock, _ = started(**{"train.steps": 1000})
    do_steps(pace, clock, 5, 6, seconds=2000)
    do_steps(pace, clock, *range(7, 101), seconds=10)
    assert pace.seconds_left() == pytest.approx(900 * 10)
