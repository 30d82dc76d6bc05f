import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.preflight.node_probe import call_the_roll, measure_matmul, plan_exchanges
from launcher.rendezvous import environment_for, find_free_port
from lmscale.ranks.ranks import Ranks

ROOT = Path(__file__).parents[3]


@given(nodes=st.integers(1, 9), local=st.integers(1, 8), absent=st.sets(st.integers(0, 71)))
@settings(max_examples=200, deadline=None)
def test_partners_have_each_other_and_every_node_meets_those_beside_it(nodes, local, absent):
    everyone = [(f"n{node}", gpu) for node in range(nodes) for gpu in range(local)]
    places = [place for number, place in enumerate(everyone) if number not in absent]
    rounds = plan_exchanges(places)
    assert len(rounds) <= 4
    met = {place: set() for place in places}
    for partners in rounds:
        assert len(partners) == len(places)
        for own, partner in enumerate(partners):
            if partner is not None:
                assert partner != own and partners[partner] == own
                met[places[own]].add(places[partner])
    for node, gpu in places:
        here = {other for other in met[node, gpu] if other[0] == node}
        assert here == {(node, gpu ^ 1)} & set(places)
        beside = met[node, gpu] - here
        assert all(other_gpu == gpu for _, other_gpu in beside)
        if not absent:
            number = int(node[1:])
            neighbours = {f"n{(number + side) % nodes}" for side in (1, -1)} - {node}
            assert {other for other, _ in beside} == neighbours


def test_a_product_on_one_core_has_a_speed():
    assert 0.0001 < measure_matmul(torch.device("cpu"), 64) < 10


def place(rank, world_size):
    return Ranks(rank=rank, world_size=world_size, local_world_size=1, node_rank=rank)


@pytest.fixture
def master(monkeypatch):
    port = find_free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


def test_the_list_is_closed_without_the_late_ones(master):
    began = time.monotonic()
    store, members, absent = call_the_roll(place(0, 3), "n0", began + 0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert (members, absent) == ([(0, "n0", 0)], [1, 2])
    with pytest.raises(RuntimeError, match="the list was closed without this process"):
        call_the_roll(place(1, 3), "n1", time.monotonic() + 5)
    assert store.add("done", 0) == 1  # the first one need not wait for it


def test_all_who_come_in_time_read_the_same_list(master):
    found = {}

    def come(rank):
        found[rank] = call_the_roll(place(rank, 3), f"n{rank}", time.monotonic() + 10)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    members = [(rank, f"n{rank}", 0) for rank in range(3)]
    assert [found[rank][1:] for rank in range(3)] == [(members, [])] * 3


def test_a_first_process_that_is_not_there_is_named_in_time(master):
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=f"no answer from 127.0.0.1:{master}: "):
        call_the_roll(place(1, 2), "n1", began + 0.5)
    assert time.monotonic() - began < 2


def start(rank, world_size, port, *options, seconds=60.0):
    """A real process; ``begin`` on its standard input lets it measure."""
    variables = environment_for(
        rank,
        world_size=world_size,
        local_rank=0,
        local_world_size=1,
        node_rank=rank,
        master=("127.0.0.1", port),
    )
    command = [sys.executable, "-m", "launcher.preflight.node_probe", "--node", f"n{rank}"]
    command += ["--seconds", str(seconds), "--megabytes", "4", *options]
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process, text="begin\n"):
    """All of its rows as one."""
    output, errors = process.communicate(text, timeout=200)
    assert process.returncode == 0, errors
    rows = {}
    for line in output.splitlines():
        rows |= json.loads(line)
    return rows


def together(processes):
    """The result of each; they need each other, so all are let go before one is awaited."""
    for process in processes:
        process.stdin.write("begin\n")
        process.stdin.flush()
    return [result(process, "") for process in processes]


@pytest.mark.ranks
def test_three_nodes_measure_together():
    port = find_free_port()
    rows = together([start(rank, 3, port) for rank in range(3)])
    for rank, row in enumerate(rows):
        assert (row["part"], row["absent"]) == ("done", [])
        assert "error" not in row
        assert row["matmul_tflops"] > 0 and row["all_reduce_gbs"] > 0
        assert set(row["links"]) == {"n0", "n1", "n2"} - {f"n{rank}"}
        assert row["link_gbs"] == max(row["links"].values())
        assert row["inside_gbs"] is None
    times = [row["met_at"] for row in rows]
    assert max(times) - min(times) < 1


@pytest.mark.ranks
def test_a_node_that_cannot_measure_does_not_hold_the_others():
    """Not even until the list is closed, which would be after 100 s here."""
    if torch.cuda.is_available():
        pytest.skip("needs a node without GPUs: asking for one is what fails here")
    port = find_free_port()
    began = time.monotonic()
    first, bad, third = together(
        [
            start(0, 3, port, seconds=200),
            start(1, 3, port, "--gpu", seconds=200),
            start(2, 3, port, seconds=200),
        ]
    )
    assert time.monotonic() - began < 90
    assert bad["part"] == "matrix product" and "sees no GPU" in bad["error"]
    for row in (first, third):
        assert (row["part"], row["absent"]) == ("done", [1])
        assert row["all_reduce_gbs"] > 0


@pytest.mark.ranks
def test_a_first_node_that_cannot_measure_calls_it_off():
    if torch.cuda.is_available():
        pytest.skip("needs a node without GPUs: asking for one is what fails here")
    port = find_free_port()
    began = time.monotonic()
    first, second = together(
        [start(0, 2, port, "--gpu", seconds=200), start(1, 2, port, seconds=200)]
    )
    assert time.monotonic() - began < 90
    assert "sees no GPU" in first["error"]
    assert (second["part"], "all_reduce_gbs" in second) == ("meeting", False)
    assert "the list was closed" in second["error"]


def test_a_process_whose_launcher_died_before_it_began_ends():
    rows = result(start(0, 1, 1), text="")
    assert rows["part"] == "waiting for the node's checks"
    assert "matmul_tflops" not in rows


def test_a_process_that_hangs_ends_by_itself():
    process = start(0, 1, 1, seconds=4.0)
    try:
        assert process.wait(30) != 0  # nobody lets it begin
    finally:
        process.kill()
        process.communicate()
