"""A real disk of a few bytes, for one script: a tmpfs that no other process sees.

As a script: ``BYTES DISK SCRIPT ARGUMENTS…``, in a fork that has loaded everything before.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from forked_processes import run_process

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h


def run_on_small_disk(disk: Path, num_bytes: int, script: Path, *arguments: str | Path) -> str:
    """What the script prints; ``disk`` is an empty folder that it finds mounted."""
    space = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    probe = subprocess.run([*space, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"a disk of its own takes unshare: {probe.stderr.strip()}")
    errors = disk.with_name("errors.txt")
    words = (__file__, num_bytes, disk, script, *arguments)
    code, said = run_process("script", words, errors=errors)
    assert code == 0, said + errors.read_text()
    return said


def main(num_bytes: str, disk: str, script: str, *arguments: str) -> None:
    leave_mounts()
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", disk]
    for command in (["mount", "--make-rprivate", "/"], tmpfs):
        subprocess.run(command, check=True)
    sys.argv = [script, disk, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def leave_mounts() -> None:
    """As ``unshare --mount [--map-root-user]`` does, for this process and those it starts."""
    user, group = os.geteuid(), os.getegid()
    own_user = 0 if user == 0 else CLONE_NEWUSER
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | own_user):
        raise OSError(ctypes.get_errno(), "unshare")
    if own_user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")


if __name__ == "__main__":
    main(*sys.argv[1:])
