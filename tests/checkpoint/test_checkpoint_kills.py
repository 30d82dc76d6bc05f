"""SIGKILL at every moment of a save; kill_saves.py does it, here as in its long form."""

import json
from pathlib import Path

import pytest
from forked_processes import run_process

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

SCRIPT = Path(__file__).parents[1] / "kill_saves.py"
MOMENTS = 10  # some in each part of a save; the changes of the disk are gone through one by one


@pytest.fixture(scope="module")
def summary(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill-saves")
    words = ("--alternates", "--moments", MOMENTS, "--folder", folder, "--data", tiny_data)
    code, said = run_process("script", [SCRIPT, *words])
    assert code == 0, said[-6000:]
    return json.loads(said.splitlines()[-1])


def test_a_kill_at_any_moment_of_a_save_never_costs_a_committed_checkpoint(summary):
    """Nor is a torn one ever resumed from: the script compares every number that a start finds."""
    by_time = summary["by time"]
    assert sum(by_time.values()) == MOMENTS
    assert by_time.get("torn", 0) > 0


def test_a_kill_before_any_change_that_a_save_makes_to_the_disk_never_costs_a_committed_checkpoint(
    summary,
):
    by_change = summary["by change"]
    assert sum(by_change.values()) == sum(summary["changes"]) + 1  # and a save in peace
    assert all(changes > 0 for changes in summary["changes"]), "the changes were not seen"
    assert by_change["torn"] > 0 and by_change["committed"] > 0
