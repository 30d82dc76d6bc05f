"""How much memory this process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """What the machine has left, or the least that a limit of this process's control groups leaves,
    such as Slurm's or a container's; None where neither is told.
    """
    return min((*_of_machine(), *_of_groups()), default=None)


def _of_machine() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _of_groups() -> Iterator[int]:
    """Of version 2. What a limit counts that the kernel may drop again is no loss."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = _GROUPS / next(line[4:] for line in lines if line.startswith("0::/"))
        groups = [own, *(path for path in own.parents if path.is_relative_to(_GROUPS))]
    except (OSError, StopIteration):
        return
    for group in groups:
        try:
            most = int((group / "memory.max").read_text())
            taken = int((group / "memory.current").read_text())
            stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
            yield most - taken + int(stat.get("inactive_file", 0))
        except (OSError, ValueError):  # no such file, or no limit: max
            continue
