"""Figures of tasks that other processes than a run's own have measured."""

import json

import pytest
from whole_runs import build_run

from lmscale.errors import DataError
from lmscale.files.jsonl import append_row
from lmscale.runs.run_folder import read_status
from lmscale.runs.task_rows import record_task_figures

NAME = "tasks/local_en_order/acc"


def record(run, step, value, **more):
    record_task_figures(run, step, {NAME: value}, **({"weights": "trained", "limit": None} | more))


def test_the_figures_of_the_newest_step_are_shown_and_of_one_step_the_latest(tmp_path):
    run = build_run(tmp_path)
    record(run, 8, 0.5)
    record(run, 10, 0.25, weights="average")
    record(run, 4, 0.75)
    assert read_status(run).figures[NAME] == 0.25
    record(run, 10, 0.375)
    status = read_status(run)
    assert (status.figures[NAME], status.figure_steps[NAME]) == (0.375, 10)
    row = json.loads((run / "tasks.jsonl").read_text().splitlines()[2])
    assert (row["step"], row["weights"], "limit" in row) == (10, "average", False)
    # Of a step that was scored in the loop as well, what is not older.
    append_row(run / "metrics.jsonl", {"step": 12, "time": 1e9, NAME: 0.125})
    assert read_status(run).figures[NAME] == 0.125


def test_a_part_of_a_task_is_shown_only_where_nothing_else_is(tmp_path):
    run = build_run(tmp_path)
    record(run, 8, 0.5, limit=7)
    assert json.loads((run / "tasks.jsonl").read_text().splitlines()[-1])["limit"] == 7
    assert read_status(run).figures[NAME] == 0.5
    record(run, 4, 0.75)
    assert (read_status(run).figures[NAME], read_status(run).figure_steps[NAME]) == (0.75, 4)
    append_row(run / "metrics.jsonl", {"step": 12, "time": 1e9, NAME: 0.125})
    record(run, 12, 0.25, limit=7)
    assert read_status(run).figures[NAME] == 0.125


def test_what_was_measured_of_steps_that_a_rewind_undid_is_not_shown(tmp_path):
    run = build_run(tmp_path)
    (run / "rewinds.jsonl").unlink(missing_ok=True)
    record(run, 4, 0.75)
    record(run, 8, 0.5)
    row = {"number": 1, "at_step": 9, "to_step": 4, "jump_samples": 0, "time": 9e9, "why": "x"}
    append_row(run / "rewinds.jsonl", row)
    assert read_status(run).figures[NAME] == 0.75


def test_a_figure_that_is_no_number_is_kept_as_none_and_a_row_that_is_none_is_told(tmp_path):
    run = build_run(tmp_path)
    record(run, 8, float("inf"))
    assert read_status(run).figures[NAME] is None
    append_row(run / "tasks.jsonl", {"step": 9, "time": 1e9, "weights": "trained", "figures": [1]})
    assert any(problem.startswith("tasks.jsonl, line 3") for problem in read_status(run).problems)


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path):
    run = build_run(tmp_path)
    (run / "tasks.jsonl").unlink()
    (run / "tasks.jsonl").mkdir()
    with pytest.raises(DataError, match="tasks.jsonl"):
        record(run, 8, 0.5)
