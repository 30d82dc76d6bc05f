"""A rank, its threads and its loader workers run on the cores beside its GPU.

``plan_cores`` is pure: a described machine → the cores of a rank. ``bind_rank`` does it, before
the process has many threads; those that it starts, and its workers, inherit it. Memory follows:
Linux gives a page on the NUMA node of the core that touches it first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmscale.ranks.ranks import Ranks, render_numbers

if TYPE_CHECKING:
    import torch

BIND_VARIABLE = "LMSCALE_BIND_RANKS"  # 0: ranks stay where the scheduler has put them


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a process may use of a node."""

    allowed: frozenset[int]  # logical cores, of its cgroup and its affinity
    numa_nodes: Mapping[int, frozenset[int]]  # NUMA node → its logical cores
    physical: Mapping[int, int]  # logical core → the first one of its physical core


def plan_cores(
    machine: Machine, gpu_nodes: Sequence[int | None], local_rank: int
) -> frozenset[int] | None:
    """The logical cores of a rank; None: it stays where it is. ``gpu_nodes``: local rank → NUMA
    node of its GPU.

    The ranks whose GPUs share a NUMA node share its physical cores evenly, unless that is less than
    half of an even share of all cores: they would starve beside idle ones.
    """
    usable = {node: cores & machine.allowed for node, cores in machine.numa_nodes.items()}
    node = gpu_nodes[local_rank]
    if sum(map(bool, usable.values())) < 2 or node is None or not usable.get(node):
        return None
    sharing = [rank for rank, its_node in enumerate(gpu_nodes) if its_node == node]
    if 2 * len(usable[node]) * len(gpu_nodes) < len(machine.allowed) * len(sharing):
        return None
    siblings: dict[int, set[int]] = {}
    for core in sorted(usable[node]):
        siblings.setdefault(machine.physical.get(core, core), set()).add(core)
    place, count, groups = sharing.index(local_rank), len(sharing), list(siblings.values())
    if len(groups) >= count:
        groups = groups[place * len(groups) // count : (place + 1) * len(groups) // count]
    return frozenset().union(*groups)


def bind_rank(ranks: Ranks, device: torch.device, *, sys: Path = Path("/sys")) -> str | None:
    """Bind this process to the cores beside its GPU; a line for the log, or None where nothing is
    to say. A process that something has bound already, such as srun, numactl or torchrun, stays so.
    """
    if device.type != "cuda" or not hasattr(os, "sched_setaffinity"):
        return None
    if os.environ.get(BIND_VARIABLE) == "0":
        return f"cores are left as they are: {BIND_VARIABLE}=0"
    machine = read_machine(sys)
    if len(machine.numa_nodes) < 2:
        return None
    try:
        if machine.allowed != _permitted():
            return f"cores are left as they were bound: {render_numbers(machine.allowed)}"
        gpu_nodes = find_gpu_nodes(ranks.local_world_size, sys)
        cores = plan_cores(machine, gpu_nodes, ranks.local_rank) if gpu_nodes else None
        if cores is None:
            return "cores are left as they are: none, or too few, are known to be beside this GPU"
        set_cores(cores)
    except OSError as error:  # a container that forbids it, or a cgroup that changes just now
        return f"cores are left as they are: {error}"
    node = gpu_nodes[ranks.local_rank]
    return f"bound to {len(cores)} cores of NUMA node {node}, its GPU's: {render_numbers(cores)}"


def set_cores(cores: frozenset[int]) -> None:
    """For all threads that this process has, and those that it starts."""
    import torch

    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cores)
    if torch.get_num_threads() > len(cores):
        torch.set_num_threads(len(cores))


def read_machine(sys: Path = Path("/sys")) -> Machine:
    """This machine, by what Linux says of it; without NUMA nodes where it says nothing."""
    allowed = frozenset(os.sched_getaffinity(0))
    nodes = {
        int(folder.name.removeprefix("node")): parse_numbers(_read(folder / "cpulist"))
        for folder in sorted((sys / "devices/system/node").glob("node[0-9]*"))
    }
    physical = {}
    for core in allowed:
        path = sys / f"devices/system/cpu/cpu{core}/topology/thread_siblings_list"
        physical[core] = min(parse_numbers(_read(path)), default=core)
    with_cores = {node: cores for node, cores in nodes.items() if cores}  # others are memory alone
    return Machine(allowed=allowed, numa_nodes=with_cores, physical=physical)


def find_gpu_nodes(count: int, sys: Path = Path("/sys")) -> list[int | None]:
    """NUMA nodes of the first ``count`` GPUs, which the local ranks take in this order; None for
    one of which Linux does not know. Empty where this process sees fewer.
    """
    import torch

    if torch.cuda.device_count() < count:
        return []
    nodes: list[int | None] = []
    for index in range(count):
        of = torch.cuda.get_device_properties(index)
        address = f"{of.pci_domain_id:04x}:{of.pci_bus_id:02x}:{of.pci_device_id:02x}.0"
        text = _read(sys / "bus/pci/devices" / address / "numa_node").strip()
        nodes.append(int(text) if text.isdecimal() else None)  # -1: a virtual machine hides it
    return nodes


def parse_numbers(text: str) -> frozenset[int]:
    """``0-3,8`` → 0, 1, 2, 3, 8."""
    ranges = (part.partition("-") for part in text.strip().split(",") if part)
    return frozenset(
        number for low, _, high in ranges for number in range(int(low), int(high or low) + 1)
    )


def _permitted() -> frozenset[int]:
    """The cores that this process could be bound to: those of its cgroup."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, range(max(before | {os.cpu_count() or 1}) + 1))
        return frozenset(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, before)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
