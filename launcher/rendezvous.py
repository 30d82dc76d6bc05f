"""How the ranks of a run find each other: the same variables from one machine or from Slurm."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from lmscale.errors import ClusterError
from lmscale.ranks.ranks import LOOPBACK


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


def unset_defaults(threads: object, environ: Mapping[str, str]) -> dict[str, str]:
    """What a rank with so many threads is given besides, where nobody has set it."""
    defaults = {
        # Every rank would otherwise start a thread per core and get in the others' way.
        "OMP_NUM_THREADS": str(threads),
        "PYTHONFAULTHANDLER": "1",  # a crash in native code leaves a stack in the rank's output
    }
    return {name: value for name, value in defaults.items() if name not in environ}


def find_free_port() -> int:
    """A TCP port of this machine that nobody holds right now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def rendezvous_from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """A rank's variables for a task that srun started, from SLURM_*.

    The batch script has resolved MASTER_ADDR once for all ranks, and looked for a free MASTER_PORT.
    Raises ``ClusterError`` with everything that is missing.
    """
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS")
    problems = [
        f"{name} = {environ[name]!r} is not a whole number."
        for name in names
        if name in environ and not environ[name].isdecimal()
    ]
    texts = ("SLURM_STEP_TASKS_PER_NODE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in environ]
    missing += [name for name in texts if not environ.get(name)]
    problems += [
        f"{name} is not set: this is not a task of an srun step of lmscale's batch script."
        for name in missing
    ]
    port = environ.get("MASTER_PORT") or "1"
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        problems.append(f"MASTER_PORT = {port!r} is not a TCP port.")
    if problems:
        raise ClusterError(problems)
    rank, local_rank, node_rank, world_size = (int(environ[name]) for name in names)
    text = environ["SLURM_STEP_TASKS_PER_NODE"]
    counts = expand_tasks_per_node(text)
    if node_rank >= len(counts) or sum(counts) != world_size:
        raise ClusterError(
            f"Slurm names {sum(counts)} tasks on {len(counts)} nodes ({text!r}), but "
            f"this step has {world_size} tasks and this is its node {node_rank}. "
            f"Start the ranks with one srun."
        )
    return environment_for(
        rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=counts[node_rank],
        node_rank=node_rank,
        master=(environ["MASTER_ADDR"], int(port)),
    )


def is_task_of_many(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks of an srun step, which nobody has made a rank yet."""
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    is_rank = "RANK" in environ or "WORLD_SIZE" in environ
    return not is_rank and tasks.isdecimal() and int(tasks) > 1


def meet_in_step(environ: Mapping[str, str]) -> dict[str, str]:
    """Where the ranks of a step that a person started meet: its first node, unless they say so.

    The port follows from the numbers of job and step: all tasks know them, and the next step,
    which may come before the kernel has let go of this one's port, has another.
    """
    nodes = expand_nodes(environ.get("SLURM_STEP_NODELIST", ""))
    numbers = (environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    job, step = (int(text) if text.isdecimal() else 0 for text in numbers)
    found = {
        "MASTER_ADDR": nodes[0] if len(nodes) > 1 else LOOPBACK,
        "MASTER_PORT": str(10_000 + (job * 7 + step) % 20_000),
    }
    return {name: value for name, value in found.items() if not environ.get(name)}


def expand_tasks_per_node(text: str) -> tuple[int, ...]:
    """``2(x3),1`` → (2, 2, 2, 1)."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise ClusterError(
                f"SLURM_STEP_TASKS_PER_NODE = {text!r}: expected counts such as 2(x3),1; "
                f"found {part!r}."
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)


def expand_nodes(text: str) -> tuple[str, ...]:
    """``gpu[01-03,7],login`` → gpu01, gpu02, gpu03, gpu7, login; leading zeros are kept."""
    if text.count("[") != text.count("]") or not text.strip():
        raise ClusterError(f"{text!r} is not a Slurm node list such as gpu[01-03,7],login.")
    nodes: list[str] = []
    for part in filter(None, map(str.strip, re.split(r",(?![^\[]*\])", text))):
        expanded = [""]
        for literal, ranges in re.findall(r"([^\[\]]*)(?:\[([^\[\]]*)\])?", part):
            choices = _expand_ranges(ranges, text) if ranges else [""]
            expanded = [prefix + literal + choice for prefix in expanded for choice in choices]
        nodes += expanded
    return tuple(nodes)


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
