"""attempts.jsonl decides which checkpoints count; what is no row of it is told, stops nothing."""

import json

import pytest
from tiny_run import run_lmscale, write_tiny_config

from lmscale.cli.main import main
from lmscale.files.run_files import ATTEMPTS_FILE


def append(run, row):
    path = run / ATTEMPTS_FILE
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
    return f"{ATTEMPTS_FILE}, line {len(path.read_text().splitlines())}: "


@pytest.mark.slow
def test_a_row_that_is_none_stops_neither_commands_nor_training_and_is_told(
    tiny_data, tmp_path, capfd
):
    run = tmp_path / "run"
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, run, {"train.steps": 4})
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    expected = append(run, {})
    assert main(["checkpoint", "list", str(run)]) == 0
    assert main(["runs", "status", str(run)]) == 0
    assert expected in capfd.readouterr().out
    ended = run_lmscale("train", config, "--set", "train.steps=6")
    assert ended.code == 0 and expected in ended.output, ended.output
