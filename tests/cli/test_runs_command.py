import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from lmscale.cli.main import main
from lmscale.runtime.goodput import open_attempt
from lmscale.runtime.heartbeat import Beat, beat_path
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
    assert "attempt 1" in text and "h, 2 ranks" not in text
    assert "2 ranks, ZeRO 1, steps 0-10: SIGTERM" in text
    assert "attempt 2" in text and "h, 4 ranks, ZeRO 3, steps 10-12: goes on" in text
    assert "step-000000010" in text and "step-000000012" not in text
    assert "evaluation/heldout/loss" in text


def test_both_print_json(run, capsys):
    assert main(["runs", "list", str(run.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["run"] == "first"
    assert main(["runs", "status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1000


def log(run, rank, *lines):
    with open(run / "logs" / f"rank-{rank:05d}.log", "a") as file:
        file.writelines(
            f"2026-11-22T01:00:{second:02d}.000 INFO {text}\n" for second, text in lines
        )


def test_the_logs_of_all_ranks_are_one(run, capsys):
    log(run, 0, (1, "a"), (4, "d"))
    log(run, 1, (2, "b"), (3, "c"))
    assert main(["runs", "logs", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["[0] line of rank 0", "[1] line of rank 1"]
    assert [(line[:3], line[-1]) for line in lines[2:]] == [
        ("[0]", "a"),
        ("[1]", "b"),
        ("[1]", "c"),
        ("[0]", "d"),
    ]
    assert main(["runs", "logs", str(run), "-n", "2"]) == 0
    assert [line[-1] for line in capsys.readouterr().out.splitlines()] == ["c", "d"]


def test_the_log_of_one_rank_is_printed_as_it_is(run, capsys):
    assert main(["runs", "logs", str(run), "--rank", "1"]) == 0
    assert capsys.readouterr().out == "line of rank 1\n"


def test_what_a_rank_wrote_outside_its_log_is_asked_for(run, capsys):
    (run / "logs" / "rank-00001.out").write_text("Traceback\n")
    assert main(["runs", "logs", str(run), "--raw"]) == 0
    assert capsys.readouterr().out == "[1] Traceback\n"
    assert main(["runs", "logs", str(run), "--job"]) == 2
    assert "job-*.out: there is no such log" in capsys.readouterr().err
    assert main(["runs", "logs", str(run), "--job", "--raw"]) == 2


def test_a_rank_without_a_log_lists_those_there_are(run, capsys):
    assert main(["runs", "logs", str(run), "--rank", "7"]) == 2
    assert "There: rank-00000.log, rank-00001.log." in capsys.readouterr().err


def test_following_goes_on_over_new_lines_and_new_ranks_until_ctrl_c(run):
    command = [sys.executable, "-m", "lmscale.cli.main", "runs", "logs", str(run), "-f"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        first = [follower.stdout.readline() for _ in range(2)]
        log(run, 1, (5, "later"))
        log(run, 3, (6, "of a new rank"))
        later = [follower.stdout.readline() for _ in range(2)]
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=20)
    assert first == ["[0] line of rank 0\n", "[1] line of rank 1\n"]
    assert [line[:3] for line in later] == ["[1]", "[3]"]
    assert follower.returncode == 130
    told = "the run has ended: stopped: SIGTERM; waiting for a next start, Ctrl-C ends this\n"
    assert said == told


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


def test_a_run_that_runs_here_is_cancelled_by_its_stop_file(run, capsys):
    restart(run)
    assert main(["runs", "cancel", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["stop_file"], said["jobs"]) == (True, [])
    assert (run / "stop").exists()
    assert main(["runs", "cancel", str(run)]) == 0
    assert "running; it was asked before to save" in capsys.readouterr().out
    assert main(["runs", "cancel", str(run), "--now"]) == 2
    assert "--now ends Slurm jobs only" in capsys.readouterr().err


def test_a_run_that_has_ended_is_left_alone(run, capsys):
    assert main(["runs", "cancel", str(run)]) == 0
    assert "nothing runs or waits: stopped: SIGTERM" in capsys.readouterr().out
    assert not (run / "stop").exists()
    assert main(["runs", "cancel"]) == 2
    assert "or a sweep with --sweep NAME" in capsys.readouterr().err


def beat(rank, phase, step):
    return Beat(
        rank=rank,
        world_size=4,
        host=f"n{1 + rank // 2}",
        pid=1,
        attempt="12.0",
        beat=9,
        step=step,
        phase=phase,
        place=1,
        ticks=0,
        phase_seconds=61.0,
        still_seconds=61.0,
        is_starting=False,
        forward_seconds=None,
        time=time.time(),
    )


def test_of_a_run_that_hangs_the_places_of_its_ranks_are_shown(run, capsys):
    restart(run)
    text = "rank 3 on n2 in data for 61 s, the others wait in agree of step 812"
    append_row(run / "watch.jsonl", {"event": "hang", "time": time.time() + 1, "text": text})
    (run / "heartbeats").mkdir()
    for rank in range(4):
        where = ("data", 812) if rank == 3 else ("agree", 812)
        beat_path(run, rank).write_text(json.dumps(asdict(beat(rank, *where))))
    assert main(["runs", "status", str(run)]) == 0
    lines = [line[17:] for line in capsys.readouterr().out.splitlines()]
    assert f"hung: {text}" in lines
    assert "rank 3 on n2: data of step 812 for 1 min 1 s" in lines
    assert "ranks 0-2 on n1, n2: agree of step 812 for 1 min 1 s" in lines
    append_row(run / "watch.jsonl", {"event": "moving", "time": time.time() + 2, "text": text})
    assert main(["runs", "status", str(run), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["state"], seen["heartbeats"]) == ("running", [])


def test_the_heartbeat_of_a_very_long_step_is_a_sign_of_life(run):
    restart(run)
    for path in run.glob("*.jsonl"):
        os.utime(path, (time.time() - 900, time.time() - 900))
    assert read_status(run).state.startswith("silent for ")
    (run / "heartbeats").mkdir()
    beat_path(run, 0).write_text("{}")
    assert read_status(run).state == "running"


def test_the_estimated_end_says_what_it_is_estimated_from(run, capsys):
    restart(run)
    for step in range(1, 5):
        row = {"step": 12 + step, "time": time.time() + step, "speed/step_seconds": 1.0}
        append_row(run / "metrics.jsonl", row)
    assert main(["runs", "status", str(run)]) == 0
    (line,) = [t for t in capsys.readouterr().out.splitlines() if t.startswith("estimated end")]
    assert "(in 16 min 28 s) at the speed of the last 3 steps; " in line
    assert line.endswith("with the goodput so far, 0%")
    assert main(["runs", "status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["forecast"]
    assert (found["steps_left"], round(found["seconds_left"])) == (988, 988)


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
    figures = {"train/loss": 2.5, "evaluation/b/loss": 3.5, "speed/tokens_per_second": 7.0}
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
        f"{task}|{task}|0|{state}|None|main|ada|1|{nodes}|N/A|N/A|0:00|1:00|1:00|rates|\n"
        for task, state, nodes in tasks
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
    with open_attempt(run, first_step=0, world_size=1, zero_stage=1) as attempt:
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
    said = "error: old\n01:00 lmscale: starting 1 ranks on 1 nodes\nINFO\nerror: no shards\nbye\n"
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
