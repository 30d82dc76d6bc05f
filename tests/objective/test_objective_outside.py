"""An installed package adds an objective: nothing of lmscale names it, everything works with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from outside_packages import install
from tiny_run import ledger_of, tiny_tree

from lmscale.files.jsonl import read_rows

HERE = Path(__file__).parent

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Where the package of ``toy_halves`` is installed."""
    entries = {"lmscale.objectives": "halves = toy_halves:HalvesConfig"}
    return install(tmp_path_factory.mktemp("site"), entries, HERE)


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_data) -> Path:
    overrides = {
        "objective": {"name": "halves"},
        "stream.workers": 1,
        "train.steps": 6,
        "evaluation.sets": {"a": str(tiny_data / "shards/a/train")},
        "evaluation.at_end": False,
    }
    folder = tmp_path_factory.mktemp("halves")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_tree(tiny_data, folder / "run", overrides)))
    return path


def test_an_objective_from_outside_trains_resumes_and_is_audited(toys, config):
    run = config.parent / "run"
    sharded = {"train.steps": 3, "engine.zero_stage": 3}
    toys.call("launch", "local", config, "--nproc", 2, **sharded)
    toys.call("train", config)
    assert len(ledger_of(run)) == 6
    rows = [row for row in read_rows(run / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert all(0 <= row["train/accuracy"] <= 1 for row in rows)
    # About half of a step's 12 · 32 positions count, and the audit counts the same ones.
    tokens = [json.loads(line)["tokens"] for line in ledger_of(run)]
    assert all(120 < count < 240 for count in tokens)
    assert toys.read("runs", "audit", run)["is_clean"]
    scored = toys.read("evaluate", run, "--max-windows", 7)["a"]
    assert 0 <= scored["accuracy"] <= 1 and scored["bytes"] > 0


def test_a_run_cannot_go_on_with_another_objective(toys, config):
    ended = toys.run("train", config, "--set", "objective={name: causal}")
    assert ended.code == 2
    assert "objective.name = 'causal', but the run began with 'halves'" in ended.output
