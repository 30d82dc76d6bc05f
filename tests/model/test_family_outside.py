"""An installed package adds a family, another one an objective: nothing of lmscale names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from outside_packages import call_lmscale, install
from tiny_run import ledger_of, tiny_tree

from lmscale.files.jsonl import read_rows

HERE = Path(__file__).parent
TOYS = {"lmscale.families": "sums = toy_sums:SumsConfig"}
TOYS["lmscale.objectives"] = "halves = toy_halves:HalvesConfig"

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """In which the packages of ``toy_sums`` and of ``toy_halves`` are installed."""
    return install(tmp_path_factory.mktemp("site"), TOYS, HERE, HERE.parent / "objective")


@pytest.mark.parametrize("objective", ["causal", "halves"])
def test_a_family_from_outside_trains_and_resumes(environment, tiny_data, tmp_path, objective):
    overrides = {"train.steps": 6, "engine.optimizer.lr": 0.02}  # six steps are to be seen
    tree = tiny_tree(tiny_data, tmp_path / "run", overrides)
    tree["model"] = {"family": "sums", "width": 24}
    tree["objective"] = {"name": objective}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    sharded = {"train.steps": 3, "engine.zero_stage": 3}
    call_lmscale(environment, "launch", "local", path, "--nproc", 2, **sharded)
    call_lmscale(environment, "train", path)
    assert len(ledger_of(tmp_path / "run")) == 6
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    shown = json.loads(call_lmscale(environment, "config", "show", path, "--nproc", 2, "--json"))
    assert shown["config"]["model"]["family"] == "sums"
    assert shown["derived"]["parameters"] == 2 * 512 * 24 + 24 * 24 + 24
