"""``torchrun -m lmscale train CONFIG``: its agents start the ranks, on two nodes as they think."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from forked_processes import ENVIRONMENT, forking
from tiny_run import launch, ledger_of, write_tiny_config

from launcher.rendezvous import find_free_port

STEPS = {"train.steps": 4}


@pytest.mark.ranks
@pytest.mark.slow
def test_torchruns_agents_on_two_nodes_train_a_run_that_goes_on_elsewhere(tiny_data, tmp_path):
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, tmp_path / "run", STEPS)
    environment = {**os.environ, **ENVIRONMENT, **forking(), "GLOO_SOCKET_IFNAME": "lo"}
    meeting = ("--rdzv-backend=static", f"--master-port={find_free_port()}")
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}"]
            + [*meeting, "--master-addr=127.0.0.1", "--nproc-per-node=1"]
            + ["-m", "lmscale", "train", str(config)],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    for agent in agents:
        said, _ = agent.communicate(timeout=120)
        assert agent.returncode == 0, said
    steps = {"train.steps": 6}
    ended = launch(config, 1, steps)
    assert ended.code == 0, ended.output
    whole = write_tiny_config(tmp_path / "w.yaml", tiny_data, tmp_path / "whole", steps)
    ended = launch(whole, 1)
    assert ended.code == 0, ended.output
    assert len(ledger_of(tmp_path / "run")) == 6
    assert ledger_of(tmp_path / "run") == ledger_of(tmp_path / "whole")
