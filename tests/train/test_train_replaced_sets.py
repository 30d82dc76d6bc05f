"""Held-out shards that were replaced are told, and no stop or best checkpoint compares both."""

from __future__ import annotations

import shutil

import pytest
from tiny_run import committed_steps, run_lmscale, settings, write_tiny_config

from lmscale.files.jsonl import read_rows
from lmscale.runs.held_out_sets import find_replaced, record_sets

LOSS = "evaluation/b/loss"
BEST = {"metric": LOSS, "mode": "max"}  # of a loss that falls the first one


def test_a_row_is_written_for_news_alone_and_the_newest_one_counts(tmp_path):
    assert find_replaced(tmp_path, {"a": "1"}) == []
    record_sets(tmp_path, {"a": "1"}, step=0)
    record_sets(tmp_path, {"a": "1"}, step=4)
    assert find_replaced(tmp_path, {"a": "1", "b": "2"}) == []
    record_sets(tmp_path, {"a": "1", "b": "2"}, step=6)
    (replaced,) = find_replaced(tmp_path, {"a": "3", "b": "2"})
    assert replaced == ("a", 0, "1", "3")
    record_sets(tmp_path, {"a": "3"}, step=8)
    assert find_replaced(tmp_path, {"a": "3"}) == []
    assert [row["sets"] for row in read_rows(tmp_path / "held_out.jsonl")] == [
        {"a": "1"}, {"b": "2"}, {"a": "3"},
    ]  # fmt: skip


@pytest.mark.ranks
def test_a_run_whose_held_out_shards_were_replaced_says_so_and_decides_nothing_by_both(
    tiny_data, tmp_path
):
    held, folder = tmp_path / "held", tmp_path / "run"
    shutil.copytree(tiny_data / "shards/b/heldout", held)
    overrides = {
        "train.steps": 4,
        "engine.schedule.warmup_steps": 0,
        "checkpoint": {"every_steps": 2, "asynchronous": False, "keep_best": BEST},
        "evaluation": {"sets": {"b": str(held)}, "every_steps": 2, "max_windows": 4},
    }
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, folder, overrides)
    ended = run_lmscale("train", config)
    assert ended.code == 0 and "are not those" not in ended.output, ended.output
    shutil.rmtree(held)
    shutil.copytree(tiny_data / "shards/a/heldout", held)
    scored = run_lmscale("evaluate", folder)
    assert scored.code == 0
    assert f"{folder}@2, the best checkpoint by {LOSS} (--step takes another)" in scored.output
    assert "has measured since step 0" in scored.output and "beside the run's own" in scored.output
    refused = run_lmscale("train", config, *settings({"train.steps": 6}))
    assert refused.code == 2 and committed_steps(folder) == [2, 4], refused.output
    assert "evaluation.sets.b: its shards (manifest " in refused.output
    assert "checkpoint.keep_best.metric would compare figures of both" in refused.output
    named = {"train.steps": 6, "evaluation.sets.new": held, "checkpoint.keep_best.metric": ""}
    told = run_lmscale("train", config, *settings(named))
    assert told.code == 0, told.output
    assert "figures after step 4 are of other texts" in told.output
    rows = [(row["step"], [*row["sets"]]) for row in read_rows(folder / "held_out.jsonl")]
    assert rows == [(0, ["b"]), (4, ["b", "new"])]
    assert "are not those" not in run_lmscale("evaluate", folder).output
