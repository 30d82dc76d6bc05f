"""How the ranks of a run find each other: the same variables from one machine or from Slurm."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from lmscale.errors import ClusterError, ConfigError

LOCAL_ADDRESS = "127.0.0.1"  # never a host name: a dead name server costs 10 s a connection
# Below the kernel's ephemeral ports (32768 on), which any program may hold at any moment.
FIRST_PORT = 10_000
NUM_PORTS = 20_000


def environment_for(
    rank: int,
    *,
    world_size: int,
    local_rank: int,
    local_world_size: int,
    node_rank: int,
    master: tuple[str, int],
) -> dict[str, str]:
    """The variables that one rank reads, by torchrun's names; ``master``: address and port."""
    if not 0 <= rank < world_size or not 0 <= local_rank < local_world_size <= world_size:
        raise ConfigError(
            f"rank {rank} of {world_size}, local rank {local_rank} of {local_world_size}: "
            f"these do not fit together."
        )
    address, port = master
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "GROUP_RANK": str(node_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def find_free_port(address: str = LOCAL_ADDRESS) -> int:
    """A TCP port of this machine that nobody holds right now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def rendezvous_from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """A rank's variables for a task that srun started, from SLURM_*.

    The ranks meet at MASTER_ADDR and MASTER_PORT when both are set: the batch script resolves the
    address once for all ranks and looks for a free port. Without these every task computes the same
    place alone: the step's first node, and a port that follows from the numbers of job and step.
    Raises ``ClusterError`` with everything that is missing.
    """
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
    problems = [
        f"{name} is not set: this is not a task of an srun step." if name not in environ
        else f"{name} = {environ[name]!r} is not a whole number."
        for name in names
        if not environ.get(name, "").isdecimal()
    ]  # fmt: skip
    tasks_text = _first(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    nodes_text = _first(environ, "SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
    if not tasks_text.isdecimal():
        problems.append(
            f"SLURM_NTASKS = {tasks_text!r}: the number of tasks is needed; "
            f"give srun or sbatch --ntasks-per-node."
        )
    if not nodes_text:
        problems.append("SLURM_NODELIST is not set: the first node's name is needed.")
    port_text = environ.get("MASTER_PORT", "") if environ.get("MASTER_ADDR") else ""
    if port_text and not (port_text.isdecimal() and 0 < int(port_text) < 2**16):
        problems.append(f"MASTER_PORT = {port_text!r} is not a TCP port.")
    if problems:
        raise ClusterError(problems)
    rank, local_rank, node_rank, job = (int(environ[name]) for name in names)
    world_size = int(tasks_text)
    nodes = expand_nodes(nodes_text)
    step = environ.get("SLURM_STEP_ID", "0")
    if port_text:
        master = (environ["MASTER_ADDR"], int(port_text))
    else:
        address = nodes[0] if len(nodes) > 1 else LOCAL_ADDRESS
        master = (address, plan_port(job, int(step) if step.isdecimal() else 0))
    return environment_for(
        rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=_tasks_on_node(environ, node_rank, len(nodes), world_size),
        node_rank=node_rank,
        master=master,
    )


def plan_port(job: int, step: int) -> int:
    """A port that all tasks of a step agree on and that two jobs on one node rarely share."""
    return FIRST_PORT + (job * 7 + step) % NUM_PORTS


def _first(environ: Mapping[str, str], *names: str) -> str:
    """The first variable that is set: the step's own stand before those of the larger job."""
    return next((environ[name] for name in names if environ.get(name)), "")


def _tasks_on_node(
    environ: Mapping[str, str], node_rank: int, num_nodes: int, world_size: int
) -> int:
    text = _first(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    per_node = environ.get("SLURM_NTASKS_PER_NODE", "")
    if text:
        counts = expand_tasks_per_node(text)
    elif per_node.isdecimal():
        counts = (int(per_node),) * num_nodes
    elif num_nodes == 1:
        counts = (world_size,)
    else:
        raise ClusterError(
            "Neither SLURM_TASKS_PER_NODE nor SLURM_NTASKS_PER_NODE is set: how many tasks run on "
            "this node cannot be known. Give sbatch or srun --ntasks-per-node."
        )
    if node_rank >= len(counts) or sum(counts) != world_size:
        raise ClusterError(
            f"Slurm names {sum(counts)} tasks on {len(counts)} nodes ({text or per_node!r}), but "
            f"this step has {world_size} tasks and this is its node {node_rank}. "
            f"Start the ranks with one srun."
        )
    return counts[node_rank]


def expand_tasks_per_node(text: str) -> tuple[int, ...]:
    """``2(x3),1`` → (2, 2, 2, 1)."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise ClusterError(
                f"SLURM_TASKS_PER_NODE = {text!r}: expected counts such as 2(x3),1; found {part!r}."
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)


def expand_nodes(text: str) -> tuple[str, ...]:
    """``gpu[01-03,7],login`` → gpu01, gpu02, gpu03, gpu7, login; leading zeros are kept."""
    nodes: list[str] = []
    for part in _split_outside_brackets(text):
        expanded = [""]
        for literal, ranges in re.findall(r"([^\[\]]*)(?:\[([^\[\]]*)\])?", part):
            choices = _expand_ranges(ranges, text) if ranges else [""]
            expanded = [prefix + literal + choice for prefix in expanded for choice in choices]
        nodes += expanded
    return tuple(nodes)


def _split_outside_brackets(text: str) -> list[str]:
    if text.count("[") != text.count("]") or not text.strip():
        raise ClusterError(f"{text!r} is not a Slurm node list such as gpu[01-03,7],login.")
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def _expand_ranges(ranges: str, text: str) -> list[str]:
    numbers: list[str] = []
    for piece in ranges.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", piece)
        if not match:
            raise ClusterError(
                f"{text!r} is not a Slurm node list: [{ranges}] should hold numbers and ranges."
            )
        low, high = match[1], match[2] or match[1]
        numbers += [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
    return numbers
