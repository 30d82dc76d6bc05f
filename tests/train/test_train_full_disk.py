"""A disk that fills up while a run trains: it ends with 75 on every rank, and is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_disk import run_on_small_disk
from tiny_run import committed_steps, launch, run_lmscale, write_tiny_config

from lmscale.cli.main import main

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

SETTINGS = {"batch.micro_windows": 6, "checkpoint.every_steps": 3, "stream.workers": 0}
LAST_STEP = 15  # whose row has no room any more


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl"])
def test_when_rank_0_cannot_write_its_rows_all_ranks_end_with_75_and_nothing_is_lost(
    tiny_data, tmp_path, name
):
    run = tmp_path / "run"
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, run, SETTINGS)
    ended = launch(config, 2, {"train.steps": 3})
    assert ended.code == 0, ended.output
    # Larger than any file of a checkpoint, and with room for a row or two, but not for all.
    path = run / name
    lines = path.read_text().splitlines()
    row = json.dumps({**json.loads(lines[0]), "note": "x" * 1_000_000})
    path.write_text("\n".join([row, *lines[1:]]) + "\n")
    ended = launch(config, 2, {"train.steps": LAST_STEP}, max_file_bytes=path.stat().st_size + 600)
    assert ended.code == 75, ended.output
    assert f"No space is left in {run} while writing {name}" in ended.output
    assert "Traceback" not in ended.output
    saved = committed_steps(run)
    assert saved and saved[-1] < LAST_STEP
    ended = run_lmscale("train", config, "--set", f"train.steps={LAST_STEP}")
    assert ended.code == 0, ended.output
    assert committed_steps(run)[-1] == LAST_STEP
    if name != "ledger.jsonl":  # whose first row has been tampered with
        assert main(["runs", "audit", str(run)]) == 0


def test_a_run_on_a_full_disk_ends_with_75_as_often_as_it_is_started_and_goes_on_once_there_is_room(
    tiny_data, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    config = write_tiny_config(
        tmp_path / "tiny.yaml",
        tiny_data,
        disk / "run",
        {"checkpoint.every_steps": 3, "train.steps": 9},
    )
    script = Path(__file__).parent / "full_disk_starts.py"
    # A checkpoint takes 0.62 MB and the rest 0.22 MB.
    *too_small, large = json.loads(run_on_small_disk(disk, 1_200_000, script, config))
    for start in too_small:
        assert start["code"] == 75, start["output"]
        assert "The checkpoint of step 6 in" in start["output"]
        assert start["committed"] == [3] and start["folders"] == ["step-000000003"]
        assert start["free"] > 200_000
    assert large["code"] == 0, large["output"]
    assert large["committed"] == [6, 9]
