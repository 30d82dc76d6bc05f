"""A save that a person asks for, by signal or file: it is kept, and the run goes on."""

import json
import signal
import time
from contextlib import suppress

import pytest
from tiny_run import committed_steps, start_lmscale, write_tiny_config

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
MANY = 100_000
EVERY = 10


def until(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def asked_steps(run):
    manifests = []
    for path in sorted((run / "checkpoints").glob("step-*/manifest.json")):
        with suppress(FileNotFoundError):  # the run has pruned it since
            manifests.append(json.loads(path.read_text()))
    return [manifest["step"] for manifest in manifests if manifest["reason"] == "asked"]


def test_a_save_is_asked_for_by_signal_and_by_file_and_kept_while_the_run_goes_on(
    tiny_data, tmp_path
):
    run = tmp_path / "run"
    overrides = {"train.steps": MANY, "checkpoint.every_steps": EVERY, "checkpoint.keep_last": 1}
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, run, overrides)
    launcher = start_lmscale("launch", "local", config, "--nproc", "2")
    try:
        # Sent at once: before a rank has loaded anything, while others train already.
        until(lambda: (run / "logs").is_dir())
        launcher.send_signal(signal.SIGUSR2)
        first = until(lambda: asked_steps(run))
        assert len(first) == 1
        until(lambda: committed_steps(run)[-1] > first[0] + EVERY)
        (run / "save").touch()
        both = until(lambda: len(found := asked_steps(run)) > 1 and found)
        assert not (run / "save").exists()
        until(lambda: committed_steps(run)[-1] > both[1] + 2 * EVERY)
        assert asked_steps(run) == both, "once each, and retention has left them"
        assert len(committed_steps(run)) <= 4
        launcher.terminate()
        said, _ = launcher.communicate(timeout=60)
        assert launcher.returncode == 75, said
        rows = [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]
        assert [row["event"] for row in rows if row["event"] != "progress"] == ["start", "end"]
    finally:
        launcher.kill()
        launcher.communicate()
