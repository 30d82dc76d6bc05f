"""Ranks are dealt the cores beside their GPUs: on described machines, and once for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lmscale.ranks import binding
from lmscale.ranks.binding import (
    Machine,
    bind_rank,
    find_gpu_nodes,
    parse_numbers,
    plan_cores,
    read_machine,
)
from lmscale.ranks.ranks import Ranks, render_numbers


def describe(nodes: dict[int, str], *, allowed: str | None = None, half: int = 0) -> Machine:
    """A machine by its NUMA nodes' cores; ``half``: the second sibling of core c is c + half."""
    numa_nodes = {node: parse_numbers(text) for node, text in nodes.items()}
    every = frozenset().union(*numa_nodes.values())
    return Machine(
        allowed=every if allowed is None else parse_numbers(allowed),
        numa_nodes=numa_nodes,
        physical={core: core % half if half else core for core in every},
    )


DGX_H100 = describe({0: "0-55,112-167", 1: "56-111,168-223"}, half=112)
DGX_A100 = describe(
    {n: f"{16 * n}-{16 * n + 15},{128 + 16 * n}-{143 + 16 * n}" for n in range(8)}, half=128
)
TWO_SOCKETS = describe({0: "0-15", 1: "16-31"})
IN_TURN = describe({0: "0,2,4,6", 1: "1,3,5,7"})  # as some BIOSes number them
ONE_NODE = describe({0: "0-63"})
MACHINES = {
    "dgx-h100": (DGX_H100, [0] * 4 + [1] * 4),
    "dgx-a100-nps4": (DGX_A100, [3, 3, 1, 1, 7, 7, 5, 5]),
    "two-sockets": (TWO_SOCKETS, [0, 0, 1, 1]),
    "two-sockets-one-rank": (TWO_SOCKETS, [1]),
    "all-gpus-on-one-socket": (TWO_SOCKETS, [0, 0, 0, 0]),
    "numbered-in-turn": (IN_TURN, [0, 1]),
    "uneven": (TWO_SOCKETS, [0, 0, 0, 1]),
    "three-on-sixteen": (TWO_SOCKETS, [0, 0, 0]),
    "cgroup-of-half": (describe({0: "0-15", 1: "16-31"}, allowed="8-23"), [0, 1]),
    "cgroup-of-one-sibling": (
        describe({0: "0-55,112-167", 1: "56-111,168-223"}, half=112, allowed="0-111"),
        [0] * 4 + [1] * 4,
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_ranks_have_cores_of_their_gpus_node_alone_and_evenly(name):
    machine, gpu_nodes = MACHINES[name]
    dealt = [plan_cores(machine, gpu_nodes, rank) for rank in range(len(gpu_nodes))]
    for cores, node in zip(dealt, gpu_nodes, strict=True):
        assert cores, name
        assert cores <= machine.numa_nodes[node] & machine.allowed
    for node in set(gpu_nodes):
        parts = [
            cores for cores, its in zip(dealt, gpu_nodes, strict=True) if its == node and cores
        ]
        assert sum(map(len, parts)) == len(frozenset().union(*parts))  # disjoint
        assert frozenset().union(*parts) == machine.numa_nodes[node] & machine.allowed  # all of it
        cores = [{machine.physical[core] for core in part} for part in parts]
        assert max(map(len, cores)) - min(map(len, cores)) <= 1
        assert sum(map(len, cores)) == len(set().union(*cores))  # siblings stay together


def test_a_dgx_h100_is_dealt_as_its_maker_lists_it():
    told = [render_numbers(plan_cores(DGX_H100, [0] * 4 + [1] * 4, rank) or ()) for rank in (0, 7)]
    assert told == ["0-13,112-125", "98-111,210-223"]


NOT_BOUND = {
    "one NUMA node": (ONE_NODE, [0, 0]),
    "the GPU's node is not known": (TWO_SOCKETS, [None, None]),
    "it is a node without cores": (TWO_SOCKETS, [4, 4]),
    "a cgroup on one node": (describe({0: "0-15", 1: "16-31"}, allowed="0-15"), [0, 0]),
    "a cgroup on the other node": (describe({0: "0-15", 1: "16-31"}, allowed="16-31"), [0, 0]),
    "a cgroup with next to nothing there": (
        describe({0: "0-15", 1: "16-31"}, allowed="0-14,16"),
        [1, 1],
    ),
    "two cores": (describe({0: "0-1"}), [0, 0]),
}


@pytest.mark.parametrize("why", NOT_BOUND)
def test_a_rank_stays_where_it_is_where_nothing_is_to_gain(why):
    machine, gpu_nodes = NOT_BOUND[why]
    assert plan_cores(machine, gpu_nodes, 0) is None


def test_fewer_cores_than_ranks_are_shared_by_all():
    machine = describe({0: "0-1", 1: "2-3"})
    assert {plan_cores(machine, [0, 0, 0, 0], rank) for rank in range(4)} == {frozenset((0, 1))}


def write_sys(folder: Path, nodes: dict[int, str], gpus: dict[str, str]) -> Path:
    for node, cores in nodes.items():
        (folder / f"devices/system/node/node{node}").mkdir(parents=True)
        (folder / f"devices/system/node/node{node}/cpulist").write_text(f"{cores}\n")
    for address, node in gpus.items():
        (folder / "bus/pci/devices" / address).mkdir(parents=True)
        (folder / "bus/pci/devices" / address / "numa_node").write_text(f"{node}\n")
    return folder


def test_a_gpus_node_is_found_by_its_address_on_the_bus(tmp_path, monkeypatch):
    gpus = [(0, 0x18, 0), (0, 0xD9, 0), (1, 0x2, 0)]
    sys = write_sys(tmp_path, {}, {"0000:18:00.0": "0", "0000:d9:00.0": "1", "0001:02:00.0": "-1"})
    properties = [
        SimpleNamespace(pci_domain_id=domain, pci_bus_id=bus, pci_device_id=number)
        for domain, bus, number in gpus
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    assert find_gpu_nodes(3, sys) == [0, 1, None]
    assert find_gpu_nodes(4, sys) == []


def test_this_machine_is_read_as_it_is():
    machine = read_machine()
    assert machine.allowed == os.sched_getaffinity(0)
    assert machine.allowed <= frozenset().union(*machine.numa_nodes.values())
    assert machine.physical.keys() == machine.allowed


BIND = """
import os, sys, threading
from pathlib import Path
import torch
from lmscale.ranks import binding
from lmscale.ranks.ranks import Ranks
binding.find_gpu_nodes = lambda count, sys: [0, 1][:count]
wait = threading.Event()
threading.Thread(target=wait.wait, daemon=True).start()
told = binding.bind_rank(Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2),
                         torch.device("cuda"), sys=Path(sys.argv[1]))
threads = {tuple(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")}
print(told, threads, torch.get_num_threads(), sep="|")
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
@pytest.mark.slow
def test_a_rank_moves_all_its_threads_unless_it_was_bound_or_told_not_to(tmp_path):
    first, second, *_ = sorted(os.sched_getaffinity(0))
    others = render_numbers(set(range((os.cpu_count() or 1) + 1)) - {first, second})
    sys_folder = write_sys(tmp_path, {0: str(first), 1: f"{second},{others}"}, {})

    def bind(*before: str, **environment: str) -> list[str]:
        command = [*before, sys.executable, "-c", BIND, str(sys_folder)]
        environ = {**os.environ, **environment}
        ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        return ended.stdout.strip().split("|")

    told, threads, count = bind(OMP_NUM_THREADS="999")
    allowed = os.sched_getaffinity(0) - {first}
    assert told.startswith(f"bound to {len(allowed)} cores of NUMA node 1, its GPU's: ")
    assert threads == str({tuple(sorted(allowed))}) and int(count) == len(allowed)
    assert bind("taskset", "-c", str(first))[0] == f"cores are left as they were bound: {first}"
    assert bind(LMSCALE_BIND_RANKS="0")[0].startswith("cores are left as they are")


def test_a_container_that_lets_nobody_bind_ends_no_run(tmp_path, monkeypatch):
    def refuse(number: int, cores: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    sys_folder = write_sys(tmp_path, {0: "0", 1: "1"}, {})
    monkeypatch.delenv("LMSCALE_BIND_RANKS", raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    told = bind_rank(Ranks(), torch.device("cuda"), sys=sys_folder)
    assert told == "cores are left as they are: [Errno 1] Operation not permitted"


def test_a_rank_on_the_cpu_is_not_bound(monkeypatch):
    monkeypatch.setattr(binding, "read_machine", lambda sys: pytest.fail("nothing is to be read"))
    assert bind_rank(Ranks(), torch.device("cpu")) is None
