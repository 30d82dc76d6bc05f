"""attempts.jsonl decides which checkpoints count, so what is no row of it is told by its line."""

import json

import pytest
from tiny_run import run_lmscale, write_tiny_config

from lmscale.cli.main import main
from lmscale.errors import DataError
from lmscale.history.history import attempt_of, read_starts
from lmscale.runs.attempts import ATTEMPTS_FILE, AttemptLog


@pytest.fixture
def run(tmp_path):
    with AttemptLog(tmp_path, first_step=4, world_size=2, zero_stage=1):
        pass
    return tmp_path


def append(run, row):
    path = run / ATTEMPTS_FILE
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
    return f"{path}, line {len(path.read_text().splitlines())}: not an attempt's row"


START = {"event": "start", "attempt": 2, "time": 5.5, "first_step": 6}


@pytest.mark.parametrize(
    "row",
    [
        {},
        *({key: value for key, value in START.items() if key != left_out} for left_out in START),
        START | {"attempt": None},
        START | {"time": "yesterday"},
        START | {"first_step": [6]},
    ],
)
def test_what_is_no_row_of_an_attempt_is_named_with_its_file_and_line(run, row):
    expected = append(run, row)
    with pytest.raises(DataError) as caught:
        read_starts(run)
    assert str(caught.value).startswith(expected)
    assert "remove it" in str(caught.value)


def test_of_rows_of_other_events_nothing_is_asked(run):
    append(run, {"event": "progress"})
    append(run, START)
    assert [start.attempt for start in read_starts(run)] == [1, 2]
    assert attempt_of(run) == {"attempt": 2, "attempt_time": 5.5}


@pytest.mark.slow
def test_commands_that_ask_which_checkpoints_count_end_with_2_for_a_row_that_is_none(
    tiny_data, tmp_path, capfd
):
    run = tmp_path / "run"
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, run, {"train.steps": 4})
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    expected = append(run, {})
    assert main(["checkpoint", "list", str(run)]) == 2
    assert expected in capfd.readouterr().err
    ended = run_lmscale("train", config, "--set", "train.steps=6")
    assert ended.code == 2 and expected in ended.output, ended.output
    assert "Traceback" not in ended.output
