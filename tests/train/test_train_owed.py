"""What was due with the step of a stop is done by the next start, once."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stopping_start
from forked_ranks import run_starts
from tiny_run import committed_steps, ledger_of, run_lmscale, write_tiny_config

from lmscale.checkpoint.retention import read_figures
from lmscale.config.training import EvaluationConfig
from lmscale.files.jsonl import read_rows
from lmscale.runs.loss_curves import BY_STEP, HELD_OUT_FOLDER
from lmscale.runs.trackers import EVENTS_FOLDER
from lmscale.train import scoring
from lmscale.train.scoring import Evaluator

LOSS = "evaluation/b/loss"


def events_of(folder: Path, name: str, run: str = ".") -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / EVENTS_FOLDER / run))
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(name)]


@pytest.mark.ranks
def test_an_evaluation_of_the_step_of_a_kill_or_of_a_stop_is_made_up_for_by_the_next_start(
    tiny_data, tmp_path
):
    overrides = {
        "run.allow_faults": True,
        "train.steps": 9,  # of which none is due with the last one
        "checkpoint": {"every_steps": 2, "asynchronous": False, "keep_best": {"metric": LOSS}},
        "evaluation.sets": {"b": f"{tiny_data}/shards/b/heldout"},
        "evaluation.every_steps": 2,
        "evaluation.max_windows": 4,
    }
    folder = tmp_path / "run"
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, folder, overrides)
    fault = {"LMSCALE_FAULTS": "kill:step=4,at=save.committed"}  # before it is scored
    assert run_lmscale("train", config, environment=fault).code == -9
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl") if LOSS in row] == [2]
    run_starts(Path(stopping_start.__file__), tmp_path, (1,))
    assert (tmp_path / "reason").read_text() == "SIGTERM"
    stopped = len(ledger_of(folder))
    assert stopped == committed_steps(folder)[-1] == stopping_start.STOP_STEP
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl") if LOSS in row] == [2, 4]
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    counts = Counter(row["step"] for row in read_rows(folder / "metrics.jsonl") if LOSS in row)
    assert counts == dict.fromkeys((2, 4, 6, 8, 9), 1)
    assert list(read_figures(folder, LOSS, at_ends=False)) == [2, 4, 6, 8]
    assert events_of(folder, LOSS) == [2, 4, 6, 8, 9]
    # What the whole set gave at the end, of other windows, is no point of the curve.
    assert events_of(folder, BY_STEP, f"{HELD_OUT_FOLDER}/b") == [2, 4, 6, 8, 9]
    assert len(events_of(folder, "final/b/loss")) == 1
    page = run_lmscale("runs", "status", folder).output.splitlines()
    told = {line.split()[0]: line.partition("at step ")[2] for line in page if "b/loss" in line}
    assert told == {LOSS: "9, of 4 windows at most", "final/b/loss": "9, of all windows"}


@pytest.mark.parametrize(
    ("settings", "step", "is_last", "due"),
    [
        ({}, 4, False, [("evaluation",)]),
        ({}, 5, False, []),
        ({}, 4, True, [("evaluation",), ("final",)]),
        ({}, 5, True, [("evaluation",), ("final",)]),  # the loop's curve has an end
        ({"max_windows": None}, 4, True, [("evaluation", "final")]),  # of the same windows
        ({"max_windows": None}, 5, True, [("evaluation", "final")]),
        ({"max_windows": None}, 4, False, [("evaluation",)]),
        ({"every_steps": 0}, 5, True, [("final",)]),  # there is no curve
        ({"at_end": False}, 4, True, [("evaluation",)]),
        ({"at_end": False}, 5, True, []),
    ],
)
def test_the_last_step_is_a_point_of_the_loops_series_and_of_the_whole_sets(
    settings, step, is_last, due
):
    config = EvaluationConfig(**{"every_steps": 2, "max_windows": 4} | settings)
    assert scoring.find_due(config, step, is_last=is_last) == due


@pytest.mark.parametrize(
    ("step", "scored", "figures", "owed"),
    [
        (0, {}, {}, []),  # before the first step
        (3, {}, {}, []),
        (4, {"train"}, {}, ["set", "task"]),
        (4, {"train", "evaluation"}, {}, ["task"]),
        (4, {"tasks"}, {}, ["set"]),
        (4, {"evaluation", "tasks"}, {}, []),
        (2, {"train"}, {}, ["set"]),
        (4, {"evaluation", "tasks"}, {"metric": LOSS}, ["set"]),  # of other weights, say
        (4, {"evaluation", "tasks"}, {"metric": LOSS, "known": True}, []),
    ],
)
def test_owed_is_what_was_due_and_has_no_figures(monkeypatch, step, scored, figures, owed):
    done: list[str] = []
    config = SimpleNamespace(
        every_steps=2, max_windows=4, stop=SimpleNamespace(metric=figures.get("metric", ""))
    )
    run: Any = SimpleNamespace(
        config=SimpleNamespace(evaluation=config), start=SimpleNamespace(step=step)
    )
    monkeypatch.setattr(scoring, "find_scored", lambda run: set(scored))
    monkeypatch.setattr(Evaluator, "score", lambda *_: done.append("set"))
    monkeypatch.setattr(Evaluator, "score_tasks", lambda *_, **more: done.append("task"))
    fourth: Any = SimpleNamespace(is_due=lambda step, is_last: step % 4 == 0)
    Evaluator(
        run=run,
        datasets={},
        plan=SimpleNamespace(),  # type: ignore[arg-type]
        trackers=None,
        poll=lambda: None,  # type: ignore[arg-type]
        stop_figures={step: 1.0} if figures.get("known") else {},
        task_scorer=fourth,
    ).score_owed()
    assert done == owed


@pytest.mark.parametrize(
    ("settings", "scored", "owed"),
    [
        ({}, set(), ["final", "task"]),
        ({}, {"final"}, ["task"]),
        ({}, {"final", "tasks"}, []),
        ({"every_steps": 2}, set(), ["evaluation", "final", "task"]),  # of a part of the windows
        ({"every_steps": 2}, {"evaluation", "final", "tasks"}, []),
        ({"every_steps": 3}, set(), ["evaluation", "final", "task"]),  # an end to its curve
        ({"every_steps": 2, "max_windows": None}, set(), ["evaluation, final", "task"]),  # at once
        ({"every_steps": 2, "max_windows": None}, {"evaluation", "tasks"}, ["final"]),
        ({"every_steps": 2, "max_windows": None, "at_end": False}, set(), ["evaluation"]),
        ({"tasks_every_steps": 2, "at_end": False}, set(), ["task"]),
        ({"at_end": False}, set(), []),
        ({"every_steps": 2, "sets": {}, "tasks": []}, set(), []),
    ],
)
def test_a_run_that_was_killed_behind_its_last_save_is_scored_as_it_would_have_been(
    monkeypatch, settings, scored, owed
):
    done: list[str] = []
    defaults = {"every_steps": 0, "tasks_every_steps": 0, "max_windows": 4, "at_end": True}
    config = SimpleNamespace(**defaults | {"sets": {"b": ""}, "tasks": ["t"]} | settings)
    run: Any = SimpleNamespace(
        config=SimpleNamespace(evaluation=config),
        start=SimpleNamespace(step=4),
        ranks=SimpleNamespace(is_first=False),
    )
    evaluator = SimpleNamespace(
        score=lambda step, *names: done.append(", ".join(names)),
        score_tasks=lambda step, is_last: done.append("task"),
    )
    monkeypatch.setattr(scoring, "find_scored", lambda run: scored)
    monkeypatch.setattr(scoring, "failing_together", nullcontext)
    monkeypatch.setattr(scoring, "open_evaluator", lambda *_: nullcontext(evaluator))
    scoring.complete_evaluation(run, lambda: None)  # type: ignore[arg-type]
    assert done == owed
