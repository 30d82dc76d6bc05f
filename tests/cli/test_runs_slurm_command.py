"""``lmscale runs`` on runs and sweeps that were submitted to Slurm, seen from the run's folder."""

import json
import time

import pytest

from lmscale.cli.main import main
from lmscale.files.jsonl import append_row
from lmscale.files.reading import read_plain
from lmscale.runs import sweep_folder
from lmscale.runs.attempts import AttemptLog


@pytest.fixture
def queued(tmp_path, monkeypatch):
    """A run that was submitted, seen from a machine without Slurm."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder = tmp_path / "runs" / "waits"
    frozen = folder / "slurm" / "20261122-011900-train"
    frozen.mkdir(parents=True)
    (frozen / "config.yaml").write_text("run: {name: waits}\ntrain: {steps: 1000}\n")
    row = {"time": time.time(), "submission": frozen.name, "job": "12", "jobs": ["12"]}
    append_row(folder / "slurm" / "submissions.jsonl", {**row, "kind": "train"})
    return folder


def event(run, kind, **more):
    row = {"event": kind, "time": time.time(), "submission": "20261122-011900-train", "job": "12"}
    append_row(run / "slurm" / "events.jsonl", {**row, "restart": 0, "step": -1, **more})


def test_a_run_that_only_waits_is_in_the_list(queued, capsys):
    assert main(["runs", "list", str(queued.parent)]) == 0
    seen = capsys.readouterr()
    assert "queued: submitted 2" in seen.out and "0/1,000" in seen.out
    assert "Slurm was not asked, for there is no squeue on this machine." in seen.err
    assert main(["runs", "cancel", str(queued)]) == 2
    assert "its jobs (12) can only be cancelled where Slurm's commands are" in (
        capsys.readouterr().err
    )


def test_a_line_torn_by_two_batch_scripts_hides_nothing(queued, capsys):
    event(queued, "start", nodes="n[1-2]")
    with open(queued / "slurm" / "events.jsonl", "a") as file:
        file.write('{"event":"start","ti{"event":"end"}\n[]\n{"event":"end"}\n')
    assert main(["runs", "status", str(queued), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["state"], seen["job"], seen["nodes"]) == ("starting", "12", "n[1-2]")
    assert len(seen["history"]) == 1


def test_cancelling_from_a_machine_without_slurm_leaves_word_for_the_batch_script(queued, capsys):
    event(queued, "start", nodes="n1")
    assert main(["runs", "cancel", str(queued), "--now"]) == 2
    assert main(["runs", "cancel", str(queued)]) == 0
    assert "will not be requeued" in capsys.readouterr().out
    assert (queued / "slurm" / "cancel").read_text() == "12\n"
    assert (queued / "stop").exists()
    assert main(["runs", "cancel", str(queued)]) == 0
    assert (queued / "slurm" / "cancel").read_text() == "12\n"


def test_nodes_left_out_and_the_end_of_every_start_are_told(queued, capsys):
    event(queued, "start", nodes="n[1-2]")
    event(queued, "exclude", nodes="n2", reason="GPU 3 is missing")
    words = {"reason": "bad nodes excluded: n2", "action": "requeue"}
    event(queued, "end", code=75, **words)
    assert main(["runs", "status", str(queued)]) == 0
    text = capsys.readouterr().out
    assert "state            queued: requeued: bad nodes excluded: n2" in text
    assert "job 12, n[1-2], steps 0-0: bad nodes excluded: n2, requeued" in text
    assert "left out n2: GPU 3 is missing" in text
    assert "Slurm            Slurm was not asked" in text


@pytest.fixture
def sweep(run, queued):
    """Two runs over one setting, of which one has begun."""
    root = run.parent / "rates"
    (root / "slurm" / "s" / "configs").mkdir(parents=True)
    for index in range(2):
        text = f"run: {{name: rates-00{index}}}\ntrain: {{steps: 50}}\n"
        (root / "slurm" / "s" / "configs" / f"00{index}.yaml").write_text(text)
    (root / "slurm" / "s" / "config.yaml").write_text("run: {name: base}\n")
    row = {"time": time.time(), "submission": "s", "job": "9", "jobs": ["9"], "kind": "train"}
    append_row(root / "slurm" / "submissions.jsonl", row)
    runs = [
        {"index": n, "run": f"rates-00{n}", "folder": "elsewhere", "values": {"train.lr": lr}}
        for n, lr in enumerate(("1e-3", "[3, 4]"))
    ]
    content = {"name": "rates", "keys": ["train.lr"], "runs": runs, "job": "9"}
    (root / "sweep.json").write_text(json.dumps(content))
    begun = root / "rates-001"
    (begun / "slurm").mkdir(parents=True)
    (begun / "config.yaml").write_text("run: {name: rates-001}\ntrain: {steps: 50}\n")
    figures = {"train/loss": 2.5, "evaluation/b/loss": 3.5, "speed/targets_per_second": 7.0}
    append_row(begun / "metrics.jsonl", {"step": 50, "time": 1.0, **figures})
    append_row(begun / "ledger.jsonl", {"step": 49})
    event(begun, "start", job="9_1", nodes="n1")
    event(begun, "end", job="9_1", code=0, action="done", reason="finished")
    return root


def test_a_sweep_is_shown_by_its_loss(sweep, capsys):
    assert main(["runs", "list", str(sweep.parent), "--sweep", "rates"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == "run train.lr state step loss held out tokens/s".split()
    assert first.split() == "rates-001 [3, 4] finished 50/50 2.5000 3.5000 7".split()
    assert second.startswith("rates-000  1e-3      queued: submitted ")
    assert main(["runs", "list", str(sweep.parent), "--sweep", "rates", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["sweep"], seen["keys"], seen["job"]) == ("rates", ["train.lr"], "9")
    assert [(row["index"], row["job"], row["state"]) for row in seen["runs"]] == [
        (1, "9_1", "finished"),
        (0, "9_0", "queued"),
    ]
    assert seen["runs"][0]["heldout"] == {"name": "evaluation/b/loss", "loss": 3.5}


def test_a_sweep_is_named_in_the_list_and_its_runs_are_in_its_own(sweep, capsys):
    assert main(["runs", "list", str(sweep.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "first", "waits", "rates:"]
    assert "a sweep of 2 runs over train.lr; `lmscale runs list" in lines[-1]
    assert main(["runs", "list", str(sweep)]) == 0
    assert "rates-000" in capsys.readouterr().out
    assert main(["runs", "list", str(sweep.parent), "--sweep", "no"]) == 2
    assert "there is no sweep 'no'. There: rates." in capsys.readouterr().err


def install_slurm(folder, *tasks):
    """A squeue that knows these tasks of an array, and a scancel that notes what it is asked."""
    rows = "".join(
        f"{task}|{task}|{state}|ada|{nodes}|N/A|1:00|None|\n" for task, state, nodes in tasks
    )
    (folder / "queue").write_text(rows)
    programs = {
        "squeue": f'while read -r row; do echo "$row"; done <{folder}/queue',
        "scancel": f'echo "$@" >>{folder}/cancelled',
    }
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize("now", [(), ("--now",)])
def test_a_sweep_is_cancelled_though_a_run_of_it_has_no_folder_yet(sweep, tmp_path, capsys, now):
    install_slurm(tmp_path / "bin", ("9_0", "PENDING", ""), ("9_1", "RUNNING", "n1"))
    arguments = ["runs", "cancel", str(sweep.parent), "--sweep", "rates", *now]
    assert main(arguments) == 0
    assert (sweep / "rates-000/slurm/cancel").read_text() == "9_0\n"
    assert (sweep / "rates-001/slurm/cancel").read_text() == "9_1\n"
    running = "--quiet 9_1" if now else "--quiet --batch --signal=USR1 9_1"
    cancelled = (tmp_path / "bin/cancelled").read_text().splitlines()
    assert cancelled == ["--quiet 9_0", running]
    assert "job 9_0, pending in the queue: cancelled" in capsys.readouterr().out


def test_a_run_that_cannot_be_cancelled_holds_no_other_up(sweep, tmp_path, capsys):
    install_slurm(tmp_path / "bin", ("9_0", "PENDING", ""), ("9_1", "RUNNING", "n1"))
    (sweep / "rates-000").write_text("a file")
    assert main(["runs", "cancel", str(sweep.parent), "--sweep", "rates"]) == 2
    seen = capsys.readouterr()
    assert "rates-000/slurm/cancel cannot be written" in seen.err
    assert "job 9_1 on n1: asked to save and to end for good" in seen.out
    assert (sweep / "rates-001/slurm/cancel").read_text() == "9_1\n"


def test_the_folder_of_a_sweep_is_cancelled_as_the_sweep(sweep, tmp_path, capsys):
    install_slurm(tmp_path / "bin", ("9_0", "PENDING", ""), ("9_1", "RUNNING", "n1"))
    assert main(["runs", "cancel", str(sweep), "--json"]) == 0
    assert (sweep / "rates-000/slurm/cancel").read_text() == "9_0\n"
    assert (sweep / "rates-001/slurm/cancel").read_text() == "9_1\n"
    assert len(json.loads(capsys.readouterr().out)) == 2


@pytest.mark.parametrize("command", ["status", "logs", "audit"])
def test_the_folder_of_a_sweep_is_not_taken_for_a_run(sweep, capsys, command):
    assert main(["runs", command, str(sweep)]) == 2
    said = capsys.readouterr().err
    assert f"this is a sweep; `lmscale runs list {sweep} --sweep rates`" in said
    assert "rates-000" in said


def finish(run):
    """A run that was submitted as job 12 and came to its end."""
    (run / "config.yaml").write_text("run: {name: waits}\ntrain: {steps: 1}\n")
    event(run, "start", nodes="n1")
    with AttemptLog(run, first_step=0, world_size=1, zero_stage=1) as attempt:
        append_row(run / "ledger.jsonl", {"step": 0})
        attempt.step(1, 1.0)
        attempt.end("finished")
    event(run, "end", code=0, action="done", reason="finished")


def launch_again(run):
    row = {"time": time.time(), "submission": "again", "job": "13", "jobs": ["13"]}
    append_row(run / "slurm" / "submissions.jsonl", {**row, "kind": "train"})


def test_slurm_is_asked_about_a_finished_run_that_was_launched_again(queued, tmp_path, capsys):
    finish(queued)
    install_slurm(tmp_path / "bin", ("13", "PENDING", ""))
    assert main(["runs", "list", str(queued.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "finished"
    launch_again(queued)
    assert main(["runs", "list", str(queued.parent), "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)
    assert (seen["state"], seen["job"]) == ("queued", "13")


def test_a_launch_that_failed_is_told_though_the_run_had_finished(queued, capsys):
    finish(queued)
    launch_again(queued)
    event(queued, "start", job="13", nodes="n1")
    event(queued, "end", job="13", code=2, action="stop", reason="something to mend, see the log")
    said = "error: old\n01:00 lmscale: starting 1 rank on 1 node\nINFO\nerror: no shards\nbye\n"
    (queued / "slurm" / "job-13.out").write_text(said)
    assert main(["runs", "status", str(queued)]) == 0
    text = capsys.readouterr().out
    assert "failed: something to mend, see the log\n" + " " * 17 + "error: no shards\n" in text
    assert f"{queued / 'logs'} (lmscale runs logs {queued} --job)" in text
    assert main(["runs", "status", str(queued), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == ["error: no shards"]
    (queued / "slurm" / "job-13.out").unlink()
    (queued / "logs").mkdir(exist_ok=True)
    (queued / "logs" / "rank-00001.out").write_text("error: of a rank\n")
    assert main(["runs", "status", str(queued), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == ["error: of a rank"]


def test_the_file_of_a_sweep_is_read_once_however_many_runs_it_has(sweep, monkeypatch, capsys):
    reads = []

    def read(path):
        reads.append(path.name)
        return read_plain(path)

    monkeypatch.setattr(sweep_folder, "read_plain", read)
    sweep_folder._read_sweep.cache_clear()
    assert main(["runs", "list", str(sweep.parent), "--sweep", "rates"]) == 0
    assert reads == ["sweep.json"]
