"""`lmscale evaluate` on several ranks: the figures of one, from shares of the work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from task_cases import build_suite
from tiny_run import Ended, launch, run_lmscale, write_tiny_config
from two_ranks import figures_of, run_on_two

from lmscale.cli.scoring_ranks import find_ranks

STEPS = {
    "train.steps": 3,
    "evaluation.at_end": False,
    "batch.micro_windows": 4,
}


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with a held-out set."""
    folder = tmp_path_factory.mktemp("scored")
    sets = {"evaluation.sets": {"a": str(tiny_data / "shards/a/heldout")}}
    config = write_tiny_config(folder / "c.yaml", tiny_data, folder / "run", STEPS | sets)
    ended = launch(config, 1)
    assert ended.code == 0, ended.output
    return folder / "run"


def evaluate_on_two(*words: str | Path) -> tuple[Ended, Ended]:
    return run_on_two("evaluate", *words)


def step_environment(rank: int) -> dict[str, str]:
    """What srun tells a task of two on one node."""
    return {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
    }


@pytest.mark.ranks
@pytest.mark.slow
def test_two_ranks_score_the_sets_as_one_does_and_the_first_says_so(run):
    alone = figures_of(run_lmscale("evaluate", run, "--json"))["a"]
    first, second = evaluate_on_two(run, "--json")
    together = figures_of(first)["a"]
    assert second.code == 0 and second.output == ""
    exact = ("windows", "targets", "bytes", "weights")
    assert {name: together[name] for name in exact} == {name: alone[name] for name in exact}
    assert alone["windows"] > 4
    # Other windows share a micro-batch, and its sum is rounded in fp32: the last bits differ.
    assert together["nll"] == pytest.approx(alone["nll"], rel=1e-6)


@pytest.mark.ranks
@pytest.mark.slow
def test_what_is_wrong_is_told_by_all_ranks_and_none_waits(run):
    for ended in evaluate_on_two(run, "--set-name", "none"):
        assert ended.code == 2 and "has no set 'none'. Known: a." in ended.output, ended.output
    for ended in evaluate_on_two(run, "--step", "7"):
        assert ended.code != 0 and "step" in ended.output
    for ended in evaluate_on_two(run, "--baseline", "ngram"):
        assert ended.code == 2 and "which one rank does alone" in ended.output
    pytest.importorskip("lm_eval")
    for ended in evaluate_on_two(run, "--tasks", "no-such-task"):
        assert ended.code == 2 and "no-such-task" in ended.output, ended.output


def test_a_mistyped_run_of_srun_makes_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", step_environment(rank=1))
    assert find_ranks(tmp_path / "tpyo").rank == 1
    assert not (tmp_path / "tpyo").exists()


def is_near(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(is_near(found[k], wanted[k]) for k in wanted)
    return found == (pytest.approx(wanted, rel=1e-5) if isinstance(wanted, float) else wanted)


@pytest.mark.ranks
@pytest.mark.slow
def test_two_ranks_answer_tasks_as_one_does_and_the_first_keeps_the_figures(run, tmp_path):
    pytest.importorskip("lm_eval")
    build_suite(tmp_path, rows=4)
    words = ("--tasks", tmp_path / "tasks", "--json")
    alone = figures_of(run_lmscale("evaluate", run, *words))
    kept = (run / "tasks.jsonl").read_text().splitlines()
    first, second = evaluate_on_two(run, *words)
    together = figures_of(first)
    assert second.code == 0 and "{" not in second.output, second.output
    assert len(together["tasks"]) > 4 and is_near(together, alone)
    assert len((run / "tasks.jsonl").read_text().splitlines()) == len(kept) + 1
