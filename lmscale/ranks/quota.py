"""How much CPU time a container may take, which its affinity does not say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def read_quota(groups: Path = GROUPS, root: Path = ROOT) -> float:
    """Cores' worth of CPU time that this process's control group and those around it may take;
    infinite without a limit, or where none can be read.

    Of version 2 by ``cpu.max``, of version 1 by ``cpu.cfs_quota_us`` (cgroups(7); the kernel's
    admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst).
    """
    limits = [math.inf]
    for folder in _find_folders(groups, root):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            limits.append(int(quota) / int(period))  # "max" is no number, and no limit
        with suppress(OSError, ValueError, ZeroDivisionError):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota_us, period_us = (int((folder / n).read_text(encoding="ascii")) for n in names)
            limits.append(quota_us / period_us if quota_us > 0 else math.inf)
    return min(limits)


def _find_folders(groups: Path, root: Path) -> Iterator[Path]:
    """Those of the process's groups and of all around them. Where a container sees its own part of
    the tree alone, the paths are not below it, and its root is the group.
    """
    rows: list[str] = []
    with suppress(OSError, ValueError):
        rows = groups.read_text(encoding="utf-8").splitlines()
    for row in rows:
        controllers, _, path = row.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [root / controllers, root / "cpu"] if controllers else [root, root / "unified"]
        for mount in mounts:
            below = Path(path.strip("/"))
            yield from (mount / each for each in (below, *below.parents))
