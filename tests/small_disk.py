"""A real disk of a few bytes, for one script: a tmpfs that no other process sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def run_on_small_disk(disk: Path, num_bytes: int, script: Path, *arguments: str | Path) -> str:
    """What the script prints; ``disk`` is an empty folder that it finds mounted."""
    space = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    probe = subprocess.run([*space, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"a disk of its own takes unshare: {probe.stderr.strip()}")
    ended = subprocess.run(
        [*space, "sh", "-c", _MOUNT, "sh", str(num_bytes), str(disk), sys.executable, str(script)]
        + [str(argument) for argument in (disk, *arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
