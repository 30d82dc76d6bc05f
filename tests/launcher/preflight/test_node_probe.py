import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked_processes import forking

from launcher.preflight.node_probe import measure_matmul, reach_first
from launcher.rendezvous import environment_for, find_free_port
from lmscale.ranks.ranks import Ranks

ROOT = Path(__file__).parents[3]


def test_a_product_on_one_core_has_a_speed():
    assert 0.0001 < measure_matmul(torch.device("cpu"), 64) < 10


def place(rank, world_size):
    return Ranks(rank=rank, world_size=world_size, local_world_size=1)


@pytest.fixture
def master(monkeypatch):
    port = find_free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


def test_a_first_process_that_is_not_there_is_named_in_time(master):
    with pytest.raises(RuntimeError, match=f"no answer from 127.0.0.1:{master}: "):
        reach_first(place(1, 2), time.monotonic() + 0.5)


def start(rank, world_size, port, *options, seconds=280.0, forked=True):
    """A real process on a node without GPUs, with more time than a busy machine needs."""
    variables = environment_for(
        rank,
        world_size=world_size,
        local_rank=0,
        local_world_size=1,
        node_rank=rank,
        master=("127.0.0.1", port),
    )
    command = [sys.executable, "-m", "launcher.preflight.node_probe"]
    command += ["--began", str(time.monotonic()), "--seconds", str(seconds)]
    command += ["--megabytes", "4", *options]
    variables |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **variables, **(forking() if forked else {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    """All rows of a process as one."""
    output, errors = process.communicate(timeout=290)
    assert process.returncode == 0, errors
    rows = {}
    for line in output.splitlines():
        rows |= json.loads(line)
    return rows


@pytest.mark.ranks
def test_three_nodes_measure_together():
    port = find_free_port()
    processes = [start(rank, 3, port) for rank in range(3)]
    rows = [result(process) for process in processes]
    for row in rows:
        assert (row["part"], row["absent"]) == ("done", [])
        assert "error" not in row
        assert row["matmul_tflops"] > 0 and row["all_reduce_gbs"] > 0
        assert row["met_at"] > 0


@pytest.mark.ranks
@pytest.mark.parametrize("number", [0, 1])
def test_one_of_three_nodes_that_cannot_measure_is_known_to_the_others_and_does_not_hold_them(
    number,
):
    """Not even until the time to meet is over, for which nobody could wait."""
    port = find_free_port()
    processes = [
        start(rank, 3, port, *(["--gpu"] if rank == number else []), seconds=1e5)  # it sees none
        for rank in range(3)
    ]
    rows = [result(process) for process in processes]
    bad = rows.pop(number)
    assert bad["part"] == "matrix product" and "sees no GPU" in bad["error"]
    for good in rows:
        assert (good["part"], good["absent"]) == ("done", [number])
        assert "all_reduce_gbs" not in good and "error" not in good


def test_a_process_whose_time_is_up_ends_by_itself():
    process = start(0, 1, 1, seconds=0.1, forked=False)  # loading torch alone takes longer
    try:
        assert process.wait(30) == -signal.SIGALRM
    finally:
        process.kill()
        process.communicate()
