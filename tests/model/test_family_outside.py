"""An installed package adds a family, another one an objective: nothing of lmscale names them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from outside_packages import install
from tiny_run import ledger_of, tiny_tree

from lmscale.cli.main import main
from lmscale.files.jsonl import read_rows

HERE = Path(__file__).parent
TOYS = {"lmscale.families": "sums = toy_sums:SumsConfig"}
TOYS["lmscale.objectives"] = "halves = toy_halves:HalvesConfig"

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Where the packages of ``toy_sums`` and of ``toy_halves`` are installed."""
    return install(tmp_path_factory.mktemp("site"), TOYS, HERE, HERE.parent / "objective")


@pytest.mark.parametrize("objective", ["causal", "halves"])
def test_a_family_from_outside_trains_and_resumes(toys, tiny_data, tmp_path, objective, capsys):
    overrides = {"train.steps": 6, "engine.optimizer.lr": 0.02}  # six steps are to be seen
    tree = tiny_tree(tiny_data, tmp_path / "run", overrides)
    tree["model"] = {"family": "sums", "width": 24}
    tree["objective"] = {"name": objective}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    sharded = {"train.steps": 3, "engine.zero_stage": 3}
    toys.call("launch", "local", path, "--nproc", 2, **sharded)
    toys.call("train", path)
    assert len(ledger_of(tmp_path / "run")) == 6
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    shown = toys.read("config", "show", path, "--nproc", 2)
    assert shown["config"]["model"]["family"] == "sums"
    assert shown["derived"]["parameters"] == 2 * 512 * 24 + 24 * 24 + 24
    # Here its package is not installed.
    kinds = ["model.family = sums", *["objective.name = halves"] * (objective == "halves")]
    for command, place in (("status", "run"), ("audit", "run"), ("list", ".")):
        assert main(["runs", command, str(tmp_path / place)]) == (0 if command == "list" else 2)
        said = "".join(capsys.readouterr())
        for kind in kinds[:1] if command == "list" else kinds:
            assert f"its {kind} comes with the package toys 1.0, which is not installed" in said
