"""Whole runs whose checkpoints are in an S3 server, or in a folder that is not the run's."""

import json
import os
import shutil
import signal
import time

import pytest
from tiny_run import (
    committed_steps,
    ledger_of,
    logged_steps,
    losses_of,
    run_lmscale,
    start_lmscale,
    write_tiny_config,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def lmscale(s3):
    return run_lmscale


@pytest.fixture
def client(s3):
    import boto3

    client = boto3.client("s3")
    yield client
    client.close()


def steps_in(client):
    """Of the manifests of the run that is killed."""
    # The server keeps what other tests of this process have put into the bucket.
    found = client.list_objects_v2(Bucket="runs", Prefix="killed/").get("Contents", ())
    keys = [row["Key"] for row in found if row["Key"].endswith("/manifest.json")]
    return sorted(int(key.split("/")[-2].removeprefix("step-")) for key in keys)


def kill_after(config, step, run, *overrides):
    """Start two ranks, and kill them all once that step is committed."""
    process = start_lmscale("launch", "local", config, "--nproc", "2", *overrides)
    deadline = time.monotonic() + 100
    while max(logged_steps(run), default=0) < step and process.poll() is None:
        assert time.monotonic() < deadline, "nothing was committed"
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_run_in_s3_is_killed_and_resumed_by_other_ranks_and_nothing_is_lost(
    lmscale, client, tiny_data, tmp_path
):
    run = tmp_path / "run"
    overrides = {
        "checkpoint.folder": "s3://runs/killed",
        "engine.zero_stage": 2,
        "train.steps": 400,
        "evaluation.sets": {"docs": str(tiny_data / "shards/a/train")},
        "evaluation.at_end": False,
    }
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, run, overrides)
    kill_after(config, 4, run)
    committed = steps_in(client)
    assert committed[-1] >= 4
    assert not list(run.glob("checkpoints/*/*.safetensors"))
    steps = committed[-1] + 4
    ended = lmscale(
        *("train", config, "--set", f"train.steps={steps}", "--set", "engine.zero_stage=3")
    )
    assert ended.code == 0, ended.output
    assert f"resumed from s3://runs/killed at step {committed[-1]}" in ended.output
    assert [json.loads(line)["step"] for line in ledger_of(run)] == list(range(steps))
    assert steps_in(client) == logged_steps(run) == [steps - 2, steps]
    audit = lmscale("runs", "audit", run)
    assert audit.code == 0, audit.output
    scored = lmscale("evaluate", run, "--json", "--max-windows", "8")
    assert scored.code == 0 and '"loss"' in scored.output, scored.output
    written = lmscale("generate", run, "--prompt", "The ", "--max-tokens", "3")
    assert written.code == 0, written.output
    missing = lmscale("evaluate", run, "--step", "1")
    assert missing.code == 2
    assert f"s3://runs/killed has no checkpoint of step 1. There are: {steps}" in missing.output


def test_a_bucket_that_is_missing_is_told_before_the_first_step(lmscale, tiny_data, tmp_path):
    overrides = {"checkpoint.folder": "s3://nowhere/tiny"}
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, tmp_path / "run", overrides)
    ended = lmscale("train", config)
    assert ended.code == 2
    assert "Make the bucket, or correct checkpoint.folder." in ended.output
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_a_run_with_its_checkpoints_in_another_folder_gives_the_same_weights(
    lmscale, tiny_data, tmp_path
):
    losses = []
    for name, folder in (("own", ""), ("other", str(tmp_path / "elsewhere"))):
        run = tmp_path / name
        overrides = {"checkpoint.folder": folder, "train.steps": 8}
        config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, run, overrides)
        for steps in (5, 8):
            ended = lmscale("train", config, "--set", f"train.steps={steps}")
            assert ended.code == 0, ended.output
        assert logged_steps(run) == [6, 8]
        losses.append(losses_of(run))
    assert losses[0] == losses[1]
    assert sorted(path.name for path in (tmp_path / "elsewhere").glob("step-*")) == [
        "step-000000006",
        "step-000000008",
    ]


def test_a_run_that_lost_its_folder_and_was_killed_on_taking_up_its_checkpoints_goes_on(
    lmscale, tiny_data, tmp_path
):
    run = tmp_path / "run"
    overrides = {"checkpoint.folder": str(tmp_path / "elsewhere"), "train.steps": 8}
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, run, overrides)
    ended = lmscale("train", config, "--set", "train.steps=6")
    assert ended.code == 0, ended.output
    for path in run.iterdir():  # the log is all that a start has written before it was killed
        if path.name != "commits.jsonl":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    ended = lmscale("train", config)
    assert ended.code == 0, ended.output
    assert "at step 6" in ended.output
    assert logged_steps(run) == [6, 8]


def test_a_run_goes_on_from_the_nodes_own_disk_when_that_is_newer(lmscale, tiny_data, tmp_path):
    run = tmp_path / "run"
    overrides = {
        "train.steps": 400,
        "checkpoint.every_steps": 300,
        "checkpoint.local.folder": str(tmp_path / "disk"),
        "checkpoint.local.every_minutes": 1e-6,
    }
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, run, overrides)
    process = start_lmscale("launch", "local", config, "--nproc", "2")
    deadline = time.monotonic() + 100
    while len(found := newest_on_disk(tmp_path)) < 2 and process.poll() is None:
        assert time.monotonic() < deadline, "nothing was committed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    found = newest_on_disk(tmp_path)
    assert committed_steps(run) == []
    steps = found[-1] + 2
    ended = lmscale("train", config, "--set", f"train.steps={steps}")
    assert ended.code == 0, ended.output
    assert f"at step {found[-1]}" in ended.output
    assert [json.loads(line)["step"] for line in ledger_of(run)] == list(range(steps))
    audit = lmscale("runs", "audit", run)
    assert audit.code == 0, audit.output
    assert committed_steps(run) == [steps] and newest_on_disk(tmp_path) == []


def newest_on_disk(tmp_path):
    manifests = (tmp_path / "disk").glob("lmscale-tiny-*/step-*/manifest.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in manifests)
