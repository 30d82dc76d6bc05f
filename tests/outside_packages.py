"""Packages that add to lmscale by entry points, installed for a test's own interpreters alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tiny_run import settings


def install(site: Path, entries: Mapping[str, str], *folders: Path) -> dict[str, str]:
    """The environment in which one package has these entry points, group → ``name = object``.

    ``site`` is an empty folder for its metadata; its modules lie in ``folders``.
    """
    installed = site / "toys-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    groups = "".join(f"[{group}]\n{entry}\n" for group, entry in entries.items())
    (installed / "entry_points.txt").write_text(groups)
    paths = os.pathsep.join(map(str, (site, *folders)))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def run_lmscale(
    environment: Mapping[str, str], *arguments: object
) -> subprocess.CompletedProcess[str]:
    """``lmscale`` in an interpreter of its own, as the packages are new to it."""
    return subprocess.run(
        [sys.executable, "-m", "lmscale.cli.main", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def call_lmscale(environment: Mapping[str, str], *arguments: object, **overrides: object) -> str:
    """What a command prints that goes well; ``overrides`` become ``--set``."""
    done = run_lmscale(environment, *arguments, *settings(overrides))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
