"""What makes training slow on this machine, and what to set; `lmscale doctor` and starts say it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lmscale.files.printing import count_of
from lmscale.ranks.attempt import node_name
from lmscale.ranks.device import faster_precision, num_cores, product_rates

# By their names in /proc/mounts: a file there is a conversation with another machine.
_NETWORK_DISKS = frozenset(
    "afs beegfs ceph cifs fuse.glusterfs fuse.juicefs fuse.s3fs fuse.sshfs gpfs lustre nfs nfs4 "
    "orangefs panfs pvfs2 smb3 smbfs wekafs".split()
)
# What helps to find a fault and costs every step, unless it is switched off.
_DEBUGGING = ("CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTHONDEVMODE")


class Slowness(NamedTuple):
    found: str
    advice: str

    @property
    def line(self) -> str:
        return f"slow: {self.found}. {self.advice}."


class Seat(NamedTuple):
    """Where a rank works."""

    node: str
    cores: list[int]  # that it may use
    threads: int


def take_seat() -> Seat:
    """This process's. Loads torch."""
    import torch

    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(num_cores())
    return Seat(node_name(), sorted(cores), torch.get_num_threads())


def find_slow(precision: str, *, on_cpu: bool, seats: Sequence[Seat]) -> Iterator[Slowness]:
    """Of this node, and of the ``seats`` of all ranks on CPUs. Measures for half a second."""
    if on_cpu and precision != "fp32":
        yield from judge_precision(precision, product_rates())
    yield from judge_seats(seats)
    yield from find_slow_build(os.environ)
    yield from judge_disk("TMPDIR", Path(tempfile.gettempdir()), read_mounts())


def judge_precision(precision: str, rates: Mapping[str, float]) -> Iterator[Slowness]:
    """By the ``product_rates`` of this CPU, not by the flags of its maker."""
    if precision == "bf16" and faster_precision(rates) == "fp32":
        yield Slowness(
            f"bf16 does {rates['bf16']:,.1f} GFLOP/s on a core of this CPU, fp32 "
            f"{rates['fp32']:,.1f}: it is {rates['fp32'] / rates['bf16']:.2g} × as slow",
            "A new run takes fp32 by --set engine.precision=auto, which is the default; this one "
            "would go on by --set engine.precision=fp32",
        )


def judge_seats(seats: Sequence[Seat]) -> Iterator[Slowness]:
    """Ranks that share a core wait for each other in every step."""
    for node in dict.fromkeys(seat.node for seat in seats):
        here = [seat for seat in seats if seat.node == node]
        threads = sum(seat.threads for seat in here)
        num_cores_here = len({core for seat in here for core in seat.cores})
        if threads <= num_cores_here:
            continue
        cores, ranks = count_of(num_cores_here, "core"), count_of(len(here), "rank")
        fits = len(here) <= num_cores_here
        advice = (
            f"Set OMP_NUM_THREADS={num_cores_here // len(here)}"
            if fits
            else f"Start {count_of(num_cores_here, 'rank')} there"
        )
        yield Slowness(
            f"{ranks} with {count_of(threads, 'thread')} share {cores} of {node}", advice
        )


def find_slow_build(environ: Mapping[str, str]) -> Iterator[Slowness]:
    """Builds and settings that are for those who look for a fault."""
    import torch

    if torch.version.debug:
        yield Slowness(f"torch {torch.__version__} is a debug build", "Install a release")
    if hasattr(sys, "gettotalrefcount"):
        yield Slowness("this Python is a debug build", "Take another one")
    found = [name for name in _DEBUGGING if environ.get(name, "0") not in ("", "0")]
    if environ.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":  # in either case of letters
        found.append("TORCH_DISTRIBUTED_DEBUG")
    for name in found:
        yield Slowness(f"{name}={environ[name]} is for finding faults", f"Unset {name}")


def judge_disk(setting: str, folder: Path, mounts: str) -> Iterator[Slowness]:
    """``mounts``: the text of /proc/mounts."""
    kind = file_system_of(folder, mounts)
    if kind in _NETWORK_DISKS:
        yield Slowness(
            f"{folder} is on a network file system ({kind})",
            f"Set {setting} to a folder on a disk of this node, or in /dev/shm",
        )


def file_system_of(folder: Path, mounts: str) -> str:
    """The type of the file system that holds ``folder``; empty where that is not known."""
    rows = [line.split() for line in mounts.splitlines()]
    # Blanks in a place are written as \040 (proc(5)); a later mount hides those before it.
    places = [(Path(row[1].replace("\\040", " ")), row[2]) for row in rows if len(row) > 2]
    holding = [(len(place.parts), kind) for place, kind in places if folder.is_relative_to(place)]
    deepest = max((depth for depth, _ in holding), default=0)
    return next((kind for depth, kind in reversed(holding) if depth == deepest), "")


def read_mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""
