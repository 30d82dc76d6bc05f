"""SIGKILL at every moment of a save; kill_saves.py does it, here as in its long form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

SCRIPT = Path(__file__).parents[1] / "kill_saves.py"
MOMENTS = 50


@pytest.fixture(scope="module")
def summary(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill-saves")
    paths = [str(SCRIPT.parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    ended = subprocess.run(
        [sys.executable, SCRIPT, "--moments", str(MOMENTS), "--folder", folder]
        + ["--data", tiny_data],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-6000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_kill_at_50_moments_of_a_save_never_costs_a_committed_checkpoint(summary):
    """Nor is a torn one ever resumed from: the script compares every number that a start finds."""
    by_time = summary["by time"]
    assert sum(by_time.values()) == 2 * MOMENTS  # all ranks, and one of them
    assert by_time.get("torn", 0) > 0


def test_a_kill_before_any_change_that_a_save_makes_to_the_disk_never_costs_a_committed_checkpoint(
    summary,
):
    by_change = summary["by change"]
    assert sum(by_change.values()) == 2 * sum(summary["changes"]) + 1  # and a save in peace
    assert all(changes > 0 for changes in summary["changes"]), "the changes were not seen"
    assert by_change["torn"] > 0 and by_change["committed"] > 0
