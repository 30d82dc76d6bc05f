import json
import time

import pytest

from lmscale.cli.main import main
from lmscale.runtime.goodput import open_attempt
from lmscale.runtime.jsonl import append_row
from lmscale.runtime.run_folder import read_status


@pytest.fixture
def run(tmp_path):
    """A run's folder after a stop and a restart that still goes on."""
    folder = tmp_path / "runs" / "first"
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {name: first}\ntrain: {steps: 1000}\n")
    for step in range(12):
        append_row(folder / "ledger.jsonl", {"step": step})
    for step, loss in ((10, 3.25), (12, 3.0)):
        figures = {"train/loss": loss, "train/tokens": 12_288, "speed/tokens_per_second": 99.5}
        append_row(folder / "metrics.jsonl", {"step": step, "time": 1.0, **figures})
    append_row(folder / "metrics.jsonl", {"step": 12, "time": 2.0, "evaluation/heldout/loss": 3.5})
    clock = iter(range(1000, 2000, 100)).__next__
    with open_attempt(folder, first_step=0, world_size=2, zero_stage=1, clock=clock) as attempt:
        attempt.step(10, 50.0)
        attempt.end("SIGTERM")
    for rank in range(2):
        (folder / "logs" / f"rank-{rank:05d}.log").write_text(f"line of rank {rank}\n")
    (folder / "checkpoints" / "step-000000010").mkdir(parents=True)
    (folder / "checkpoints" / "step-000000010" / "manifest.json").write_text("{}")
    (folder / "checkpoints" / "step-000000012").mkdir()  # being written
    return folder


def restart(folder):
    start = {"first_step": 10, "host": "h", "world_size": 4, "zero_stage": 3}
    append_row(
        folder / "attempts.jsonl", {"event": "start", "time": time.time(), "attempt": 2, **start}
    )


def test_a_stopped_run_says_why(run):
    status = read_status(run)
    assert status.state == "SIGTERM"
    assert status.step == 12
    assert status.figures["train/loss"] == 3.0
    assert status.figures["evaluation/heldout/loss"] == 3.5
    assert status.checkpoints == ("step-000000010",)
    assert status.goodput.productive_seconds == 50.0


def test_a_run_that_writes_is_running(run):
    restart(run)
    assert read_status(run).state == "running"
    assert read_status(run).goodput.restarts == 1


def test_the_list_has_a_line_for_each_run(run, capsys):
    restart(run)
    assert main(["runs", "list", str(run.parent)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[:6] == ["first", "running", "12/1,000", "12,288", "3.0000", "100"]
    assert line.split()[-1] == "1"


def test_the_status_shows_attempts_and_checkpoints(run, capsys):
    restart(run)
    assert main(["runs", "status", str(run)]) == 0
    text = capsys.readouterr().out
    assert "attempt 2" in text and "4 ranks, ZeRO 3, from step 10" in text
    assert "step-000000010" in text and "step-000000012" not in text
    assert "evaluation/heldout/loss" in text


def test_both_print_json(run, capsys):
    assert main(["runs", "list", str(run.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["run"] == "first"
    assert main(["runs", "status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1000


def test_the_log_of_each_rank_is_printed(run, capsys):
    assert main(["runs", "logs", str(run), "--rank", "1"]) == 0
    assert capsys.readouterr().out == "line of rank 1\n"


def test_a_rank_without_a_log_lists_those_there_are(run, capsys):
    assert main(["runs", "logs", str(run), "--rank", "7"]) == 2
    assert "There: rank-00000.log, rank-00001.log." in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    for command in ("status", "audit"):
        assert main(["runs", command, str(tmp_path)]) == 2
        assert "is not a run's folder" in capsys.readouterr().err
    assert main(["runs", "list", str(tmp_path / "no")]) == 2
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert "holds no runs" in capsys.readouterr().out


def test_a_run_that_cannot_be_read_says_why_in_its_row_and_hides_no_other(run, capsys):
    other = run.parent / "other"
    other.mkdir()
    (other / "config.yaml").write_text("run: {name: other}\ntrian: {}\nmodle: {}\n")
    assert main(["runs", "list", str(run.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "first", "other"]
    assert lines[2].split()[1:] == (
        "config.yaml: trian: unknown key. Did you mean train? (and 1 more) - - - - - -".split()
    )
    assert main(["runs", "list", str(run.parent), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["run"] == "first"
    assert (rows[1]["run"], len(rows[1]["problems"])) == ("other", 2)
    assert main(["runs", "status", str(other)]) == 2
