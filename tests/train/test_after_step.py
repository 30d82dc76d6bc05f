"""What follows a step does so in one order, on rank 0 and on the others."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from lmscale.train import after_step, profiling

SAVED = ("compare", "save", "score", "export")
HOOKS = ("count", "show", "progress", *SAVED)
REPORT: Any = SimpleNamespace(step=3, stop_reason=None, save_for=())


@pytest.fixture
def called(monkeypatch):
    """The names of the hooks as they are called; each stands for the real one."""
    calls = []

    def hook(name):
        return MagicMock(side_effect=lambda *arguments, **more: calls.append(name), has_refused=0)

    hooks = {name: hook(name) for name in HOOKS}
    stand_ins = {
        "ProgressCounter": MagicMock(return_value=hooks["count"]),
        "MetricsHook": MagicMock(return_value=hooks["show"]),
        "progress_hook": MagicMock(return_value=nullcontext(hooks["progress"])),
        "RankComparison": MagicMock(return_value=hooks["compare"]),
        "Saver": MagicMock(return_value=hooks["save"]),
        "open_evaluator": MagicMock(return_value=nullcontext(hooks["score"])),
        "open_exporter": MagicMock(return_value=nullcontext(hooks["export"])),
        "_record": hook("record"),
        "judge": hook("judge"),
    }
    names = ("open_ledger", "open_run_trackers", "open_pace", "build_guard")
    others = {name: MagicMock() for name in names}
    for name, value in (stand_ins | others).items():
        monkeypatch.setattr(after_step, name, value)
    return calls


@pytest.mark.parametrize(
    ("attempt", "order"),
    [
        (
            MagicMock(),  # rank 0's
            ["count", "record", "show", "progress", "judge", *SAVED],
        ),
        (None, ["count", "judge", *SAVED]),
    ],
    ids=["rank 0", "another rank"],
)
def test_a_step_is_recorded_and_judged_before_it_is_saved_and_scored_last(called, attempt, order):
    opened = after_step.open_after_step(MagicMock(), MagicMock(), lambda: None, attempt)
    with opened as follow:
        follow(REPORT)
    assert called == order


@pytest.mark.parametrize("why", [None, "stopped early at step 3"])
def test_a_request_after_the_evaluation_that_ends_a_run_does_not_make_it_end_otherwise(called, why):
    with after_step.open_after_step(MagicMock(), MagicMock(), lambda: None, None) as follow:
        evaluator: Any = follow.evaluator
        evaluator.early_stop, evaluator.scored_step = why, 3
        follow(REPORT)
        assert evaluator.poll.now.called == (why is None)


def test_a_profile_is_looked_at_behind_all_else_and_is_not_there_unless_it_is_asked_for(
    called, monkeypatch
):
    profiler = MagicMock(side_effect=lambda report: called.append("profile"))
    monkeypatch.setattr(profiling, "StepProfiler", MagicMock(return_value=profiler))
    for plan, seen in ((None, []), (MagicMock(), ["profile"])):
        called.clear()
        opened = after_step.open_after_step(
            MagicMock(), MagicMock(), lambda: None, MagicMock(), plan
        )
        with opened as follow:
            follow(REPORT)
        assert called == ["count", "record", "show", "progress", "judge", *SAVED, *seen]
    profiler.close.assert_called_once()
