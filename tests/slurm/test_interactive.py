"""Training that a person types inside of an allocation: salloc, srun, and lmscale on a node."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cluster import Cluster
from forked_processes import ENVIRONMENT, forking
from jobs import OVERRIDES, STEPS
from tiny_run import ledger_of, settings, write_tiny_config

LMSCALE = (sys.executable, "-m", "lmscale")


@pytest.mark.slurm
@pytest.mark.ranks
@pytest.mark.slow
def test_ranks_that_srun_starts_train_on_two_nodes_and_a_shell_on_one_of_them_goes_on(
    cluster: Cluster, tiny_data: Path, whole_ledger: list[str], tmp_path: Path, monkeypatch
):
    for name, value in (ENVIRONMENT | forking() | {"GLOO_SOCKET_IFNAME": "lo"}).items():
        monkeypatch.setenv(name, value)
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, tmp_path / "run", OVERRIDES)
    half = settings({"train.steps": STEPS // 2})
    two = ("salloc", "--nodes=2", "--ntasks-per-node=2", "--mem=1000")
    cluster.run(*two, "srun", *LMSCALE, "train", config, *half, timeout=120)
    assert ledger_of(tmp_path / "run") == whole_ledger[: STEPS // 2]
    outputs = {path.name for path in (tmp_path / "run/logs").glob("rank-*.out")}
    assert outputs == {f"rank-0000{rank}.out" for rank in (1, 2, 3)}  # rank 0 keeps the terminal
    one = ("salloc", "--nodes=1", "--ntasks=1", "--cpus-per-task=2", "--mem=1000")
    here = ("srun", "--pty", *LMSCALE, "launch", "local", config, "--nproc", "2")
    cluster.run(*one, *here, timeout=120)
    assert ledger_of(tmp_path / "run") == whole_ledger
