"""An installed package adds a family, another one an objective: nothing of lmscale names them."""

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
TOYS = {"lmscale.families": "sums = toy_sums:SumsConfig"}
TOYS["lmscale.objectives"] = "halves = toy_halves:HalvesConfig"

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """In which the packages of ``toy_sums`` and of ``toy_halves`` are installed."""
    site = tmp_path_factory.mktemp("site")
    installed = site / "toys-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    groups = "".join(f"[{group}]\n{entry}\n" for group, entry in TOYS.items())
    (installed / "entry_points.txt").write_text(groups)
    path = f"{site}:{HERE}:{HERE.parent / 'objective'}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def call(environment, *arguments, **overrides) -> str:
    """What ``lmscale`` prints, in an interpreter of its own, as the packages are new to it."""
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


@pytest.mark.parametrize("objective", ["causal", "halves"])
def test_a_family_from_outside_trains_and_resumes(environment, tiny_data, tmp_path, objective):
    overrides = {"train.steps": 6, "engine.optimizer.lr": 0.02}  # six steps are to be seen
    tree = tiny_tree(tiny_data, tmp_path / "run", overrides)
    tree["model"] = {"family": "sums", "width": 24}
    tree["objective"] = {"name": objective}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    sharded = {"train.steps": 3, "engine.zero_stage": 3}
    call(environment, "launch", "local", path, "--nproc", 2, **sharded)
    call(environment, "train", path)
    assert len(ledger_of(tmp_path / "run")) == 6
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    shown = json.loads(call(environment, "config", "show", path, "--nproc", 2, "--json"))
    assert shown["config"]["model"]["family"] == "sums"
    assert shown["derived"]["parameters"] == 2 * 512 * 24 + 24 * 24 + 24
