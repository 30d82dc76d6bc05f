"""A save that a person asks for, by signal or file: it is kept, and the run goes on."""

import json
import signal
import time
from contextlib import suppress

import pytest
from tiny_run import committed_steps, run_lmscale, start_lmscale, write_tiny_config

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
        until(lambda: not (run / "save").exists())
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


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_request_to_save_is_removed_when_the_save_is_committed_and_not_before(
    tiny_data, tmp_path, monkeypatch, is_killed
):
    run = tmp_path / "run"
    overrides = {"train.steps": 6, "checkpoint.every_steps": 50, "run.allow_faults": True}
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, run, overrides)
    run.mkdir()
    (run / "save").touch()
    if is_killed:  # once the loop has gone on
        faults = "delay:seconds=1,at=save.write; kill:at=save.commit"
        monkeypatch.setenv("LMSCALE_FAULTS", faults)
        assert run_lmscale("train", config).code != 0
        assert asked_steps(run) == [] and (run / "save").exists()
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    assert asked_steps(run) == [1], "once, though it lay there for some steps"
    assert not (run / "save").exists()
