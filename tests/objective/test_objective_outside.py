"""An installed package adds an objective: nothing of lmscale names it, everything works with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import ledger_of, settings, tiny_tree

from lmscale.files.jsonl import read_rows

HERE = Path(__file__).parent

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """In which the package of ``toy_halves`` is installed."""
    site = tmp_path_factory.mktemp("site")
    installed = site / "toy_halves-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-halves\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[lmscale.objectives]\nhalves = toy_halves:HalvesConfig\n"
    )
    return {**os.environ, "PYTHONPATH": f"{site}:{HERE}", "OMP_NUM_THREADS": "1"}


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


def call(environment, *arguments, **overrides) -> str:
    """What ``lmscale`` prints, in an interpreter of its own, as the package is new to it."""
    command = [sys.executable, "-m", "lmscale.cli.main", *map(str, arguments)]
    done = subprocess.run(
        [*command, *settings(overrides)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_objective_from_outside_trains_resumes_and_is_audited(environment, config):
    run = config.parent / "run"
    sharded = {"train.steps": 3, "engine.zero_stage": 3}
    call(environment, "launch", "local", config, "--nproc", 2, **sharded)
    call(environment, "train", config)
    assert len(ledger_of(run)) == 6
    rows = [row for row in read_rows(run / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert all(0 <= row["train/accuracy"] <= 1 for row in rows)
    # About half of a step's 12 · 32 positions count, and the audit counts the same ones.
    tokens = [json.loads(line)["tokens"] for line in ledger_of(run)]
    assert all(120 < count < 240 for count in tokens)
    assert json.loads(call(environment, "runs", "audit", run, "--json"))["is_clean"]
    scored = json.loads(call(environment, "evaluate", run, "--max-windows", 7, "--json"))["a"]
    assert 0 <= scored["accuracy"] <= 1 and scored["bytes"] > 0


def test_a_run_cannot_go_on_with_another_objective(environment, config):
    command = [sys.executable, "-m", "lmscale.cli.main", "train", str(config)]
    done = subprocess.run(
        [*command, "--set", "objective={name: causal}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "objective.name was 'halves' when it was written and is 'causal' now" in done.stderr
