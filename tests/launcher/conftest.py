"""A run that may be submitted, and scripts for Slurm's commands; ``tests/slurm`` has a real one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import tiny_tree

from launcher.options import LaunchOptions

SBATCH = """
if [[ $* == *--test-only* ]]; then cat >"$here/tested.sh"; echo "sbatch: Job 1 starts" >&2; exit; fi
number=$(($(cat "$here/count" 2>/dev/null || echo 100) + 1))
if [[ -e $here/refuse-$number ]]; then echo "sbatch: error: no more" >&2; exit 1; fi
echo $number >"$here/count"; echo "$*" >>"$here/submitted"; echo "$number;lab"
"""
# ``queue`` has rows of every job, ``queue---name=NAME`` those of one.
SQUEUE = 'cat "$here/queue" "$here/queue-${@: -1}" 2>/dev/null'
PROFILE = {"time": "1:00:00", "tasks_per_node": 2, "shared": ["/"], "python": sys.executable}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch) -> Path:
    """A folder with stand-ins for Slurm's commands, and what they saw."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": ""}
    scripts["scancel"] = 'echo "$*" >>"$here/cancelled"'
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\nhere={folder}\n{script}\nexit 0\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def options(tmp_path: Path, tiny_data: Path) -> LaunchOptions:
    """A run that has all it needs."""
    tree = tiny_tree(tiny_data, tmp_path / "runs/tiny")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(PROFILE))
    return LaunchOptions(
        config=tmp_path / "tiny.yaml", cluster=str(tmp_path / "lab.yaml"), nodes="2"
    )
