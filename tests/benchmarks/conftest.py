"""The benchmarks are scripts beside each other: their folder is where they find one another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked_processes import forking, run_process

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture
def run_script():
    """Run a command from the repository's root on one core; what it printed, or its failure."""

    def run(*command: str, expected: int = 0) -> str:
        if command[0] == sys.executable:  # in a fork, which has loaded torch
            code, said = run_process("script", command[1:], folder=ROOT)
            assert code == expected, said
            return said
        done = subprocess.run(
            command,
            cwd=ROOT,
            # Its Python stands for a fork that has loaded torch.
            env={**os.environ, **forking(), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout

    return run
