"""A run exports its checkpoints while it trains, and no export can harm it."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
from tiny_run import (
    children_of,
    committed_steps,
    launch,
    log_commit,
    run_lmscale,
    tiny_config,
    write_tiny_config,
)

from lmscale.config import load_config
from lmscale.errors import ConfigError
from lmscale.runs.commits import read_commits
from lmscale.runs.exports import export_path, find_due, read_exports, record_export
from lmscale.train.exporting import Exporter
from lmscale.train.kept import plan_kept

EVERY_TWO = {"export.format": "hf", "export.every_steps": 2, "checkpoint.keep_last": 1}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="transformers needs Python 3.11")
def test_a_run_exports_while_it_trains_goes_on_where_it_cannot_and_a_start_does_what_is_left(
    tiny_data, tmp_path
):
    run = tmp_path / "run"
    overrides = EVERY_TWO | {"train.steps": 4, "export.every_steps": 4}
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, run, overrides)
    foreign = tmp_path / "exports/step-000000004/a user's file"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    to = {"export.folder": str(tmp_path / "exports")}

    ended = launch(config, 2, to)
    assert ended.code == 0, ended.output
    assert "step 4 is not exported (exit code 2)" in ended.output
    assert "lmscale did not write it" in ended.output
    assert [row["state"] for row in read_exports(run)] == ["failed"]

    ended = launch(config, 2, to | {"train.steps": 8})
    assert ended.code == 0, ended.output
    assert "exported step 8 to" in ended.output
    assert [row["state"] for row in read_exports(run)] == ["failed", "done"]
    settings = json.loads((tmp_path / "exports/step-000000008/config.json").read_text())
    assert settings["model_type"] == "llama"
    assert committed_steps(run) == [8]

    (run / "exports.jsonl").write_text("")
    (tmp_path / "exports/step-000000008/lmscale_export.json").unlink()
    ended = launch(config, 2, to | {"train.steps": 8})
    assert ended.code == 0, ended.output
    assert "step 8 is not exported (exit code 2)" in ended.output  # it is not lmscale's any more


def test_what_is_due_is_kept_and_a_rewound_step_is_due_again(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = tiny_config(tmp_path, run, EVERY_TWO)
    log_commit(run, 1)
    log_commit(run, 2)
    log_commit(run, 4)
    log_commit(run, 5, reason="last")
    assert [commit.step for commit in find_due(config.export, run)] == [2, 4, 5]
    spare = plan_kept(config, run, num_rewinds=9)
    assert spare([1, 2, 4, 5], 5)["export"] == [2, 4, 5]
    second = read_commits(run)[1]
    record_export(run, second, "done")
    assert [commit.step for commit in find_due(config.export, run)] == [4, 5]
    log_commit(run, 2, sha256="of a step that was done anew")
    assert [commit.step for commit in find_due(config.export, run)] == [2, 4, 5]
    never = tiny_config(tmp_path, run, {"export.format": "hf"})
    assert find_due(never.export, run) == []


def test_of_those_that_are_late_the_newest_is_begun_and_an_end_of_the_run_ends_it(tmp_path):
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    config = tiny_config(tmp_path, run, EVERY_TWO)
    log_commit(run, 2)
    log_commit(run, 4)
    before = {*children_of(os.getpid())}
    exporter = Exporter(config, committed_step=lambda: 4, is_active=True)
    exporter.finish(lambda: True)  # a stop is asked for
    assert [(row["step"], row["state"]) for row in read_exports(run)] == [(2, "left out")]
    assert len({*children_of(os.getpid())} - before) == 1
    began_at = time.monotonic()
    exporter.close()
    assert {*children_of(os.getpid())} <= before
    assert time.monotonic() - began_at < 9
    assert [commit.step for commit in find_due(config.export, run)] == [4]
    other_rank = Exporter(config, committed_step=lambda: 4, is_active=False)
    other_rank.finish(lambda: False)
    assert {*children_of(os.getpid())} <= before


def test_gguf_is_a_file(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run", {"export.folder": "/there"})
    assert str(export_path(config, 7)) == "/there/step-000000007"
    config = tiny_config(tmp_path, tmp_path / "run", {"export.format": "gguf"})
    assert export_path(config, 7).name == "step-000000007.gguf"


def test_a_model_that_cannot_be_exported_is_refused_before_it_is_trained(tmp_path):
    places = {"model.positions": "learned", "export.format": "hf"}
    config = write_tiny_config(tmp_path / "c.yaml", tmp_path, tmp_path / "run", places)
    ended = run_lmscale("train", config)
    assert ended.code == 2
    assert "no architecture of transformers computes this" in ended.output
    assert "positions = 'learned' (there 'rope')" in ended.output
    assert not (tmp_path / "run").exists()
    text = config.read_text()
    config.write_text(text.replace("format: hf", "format: null"))
    load_config(config)
    with pytest.raises(ConfigError, match=r"every_steps = 3 needs a format: hf or gguf"):
        load_config(config, ["export.every_steps=3"])
    with pytest.raises(ConfigError, match="give a multiple of checkpoint.every_steps = 2"):
        load_config(config, ["export.every_steps=3", "export.format=hf", "model.positions=rope"])
