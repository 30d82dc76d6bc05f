import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict

from handmade_checkpoints import save
from tiny_run import log_commit

from lmscale.checkpoint.places.place import LocalPlace
from lmscale.cli.main import main
from lmscale.cli.runs.look import RunLook, look_at, read_page
from lmscale.files.jsonl import append_row
from lmscale.ranks.attempt import Attempt
from lmscale.runs.lease import Lease
from lmscale.runs.run_folder import read_status
from lmscale.watch.heartbeat import Beat, beat_path


def restart(folder):
    start = {"job": None, "restart": 0, "first_step": 10}
    start |= {"host": "h", "world_size": 4, "zero_stage": 3}
    append_row(
        folder / "attempts.jsonl", {"event": "start", "time": time.time(), "attempt": 2, **start}
    )


def state_of(run):
    look = look_at([run]).runs[run]
    assert isinstance(look, RunLook)
    return look.state.line


def test_a_stopped_run_says_why(run):
    status = read_status(run)
    assert state_of(run) == "stopped: SIGTERM"
    assert status.step == 12
    assert status.figures["train/loss"] == 3.0
    assert status.figures["evaluation/heldout/loss"] == 3.5
    assert [commit.name for commit in status.commits] == ["step-000000010"]
    assert status.goodput.productive_seconds == 50.0


def test_a_run_that_writes_is_running(run):
    restart(run)
    assert state_of(run) == "running: last sign 0 s ago, from h"
    assert read_status(run).goodput.restarts == 1


def test_a_killed_run_of_this_machine_is_lost_at_once_and_so_are_its_steps(run, capsys):
    sleeper = subprocess.Popen([sys.executable, "-c", f"{START}time.sleep(600)", str(run)])
    try:
        while state_of(run) != "running":
            assert sleeper.poll() is None
            time.sleep(0.05)
        append_row(run / "ledger.jsonl", {"step": 12})
        sleeper.kill()
        sleeper.wait()
        assert state_of(run) == f"lost: killed: {describe(sleeper.pid)}, its rank 0, is gone"
        Lease(Attempt(), run).take(["h"])  # a next start, which loads the weights
        assert state_of(run).startswith("running: last sign")
        (run / "lease.json").unlink()
        assert main(["runs", "status", str(run)]) == 0
        lines = lines_of(capsys)
        ends = "steps 10-10, 3 steps lost, 12 s: lost: no end was written"
        assert any(line.endswith(ends) for line in lines)
        assert "lost             5 whole steps in all, 22 s of training" in lines
    finally:
        sleeper.kill()


def describe(pid):
    return f"process {pid} on {socket.gethostname()}"


# An attempt at steps 10 to 12, of 4 s each, which the process does not end.
START = """
import sys, time
from lmscale.runs.attempts import AttemptLog
spent = {}
attempt = AttemptLog(
    sys.argv[1], first_step=10, world_size=1, zero_stage=1, phase_seconds=spent.copy
)
spent["forward"] = 8.0
attempt.step(12, 8.0)
attempt._write("progress")
"""


def test_the_list_has_a_line_for_each_run(run, capsys):
    restart(run)
    assert main(["runs", "list", str(run.parent)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    shown = "first running: last sign 0 s ago, from h 12/1,000 12,288 3.0000 100"
    assert " ".join(line.split()).startswith(shown)
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


def lines_of(capsys):
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_the_status_says_of_which_step_a_figure_is(run, capsys):
    append_row(run / "metrics.jsonl", {"step": 14, "time": 3.0, "train/loss": 2.75})
    assert main(["runs", "status", str(run)]) == 0
    lines = lines_of(capsys)
    assert "loss             2.7500 nats per token  at step 14" in lines
    assert "trained on       12,288 tokens  at step 12" in lines
    assert "speed            100 tokens/s  at step 12" in lines
    said = "evaluation/heldout/loss                     3.5 nats per token  at step 12"
    assert f"{said}, of all windows" in lines
    assert main(["runs", "status", str(run), "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["figure_steps"]
    assert (steps["train/loss"], steps["train/tokens"]) == (14, 12)


def test_the_held_out_loss_is_that_of_the_newest_step_and_there_of_the_whole_set(run):
    append_row(run / "metrics.jsonl", {"step": 10, "time": 3.0, "final/heldout/loss": 4.0})
    assert read_status(run).heldout == ("evaluation/heldout/loss", 3.5)  # it went on after that end
    append_row(run / "metrics.jsonl", {"step": 12, "time": 4.0, "final/heldout/loss": 3.25})
    assert read_status(run).heldout == ("final/heldout/loss", 3.25)


def test_the_status_says_where_the_time_went(run, capsys):
    begun = {"event": "start", "time": 11_400.0, "attempt": 2, "first_step": 10}
    begun |= {"job": None, "restart": 0}
    append_row(run / "attempts.jsonl", {**begun, "host": "h", "world_size": 2, "zero_stage": 1})
    seconds = {"start": 20.0, "step": 140.0, "data": 30.0, "save": 10.0}
    ended = {"event": "end", "time": 11_600.0, "attempt": 2, "step": 12, "step_seconds": 170.0}
    append_row(run / "attempts.jsonl", {**ended, "seconds": seconds, "reason": "SIGTERM"})
    log_commit(run, 12)
    assert main(["runs", "status", str(run)]) == 0
    lines = lines_of(capsys)
    begin = lines.index("time             2 h 56 min in all, 10 min of them running")
    assert [" ".join(line.split()) for line in lines[begin + 1 : begin + 7]] == [
        "1.8% 3 min 10 s in steps that count",
        "0.3% 30 s waiting for data",
        "0.1% 10 s held up by saves",
        "1.1% 2 min starting up",
        "94.3% 2 h 46 min down, between attempts",
        "2.4% 4 min 10 s otherwise",
    ]
    assert any(
        line.startswith("goodput") and line.endswith("time, 31.7% of the time in which it ran")
        for line in lines
    )
    assert main(["runs", "status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["goodput"]
    assert (found["wall_seconds"], found["running_seconds"]) == (10_600.0, 600.0)
    assert (found["stalls_seconds"], found["down_seconds"]) == (30.0, 10_000.0)
    assert round(sum(found["fractions"].values()), 9) == 1.0


def test_the_status_shows_the_last_checkpoint_and_saves_that_failed(run, capsys):
    log_commit(run, 10, bytes=2_000_000, reason="asked", time=time.time() - 5 * 86_400)
    restart(run)
    ended = {"event": "end", "time": time.time(), "attempt": 2, "step": 12, "step_seconds": 1.0}
    ended |= {"seconds": {"step": 1.0}, "reason": "NoSpaceError"}
    append_row(run / "attempts.jsonl", ended)
    assert main(["runs", "status", str(run)]) == 0
    lines = lines_of(capsys)
    text = "last checkpoint  step 10, 5 d ago, 2 MB, asked for; 2 steps were done since"
    assert text in lines
    (failed,) = [line for line in lines if line.startswith("failed saves")]
    assert failed.endswith("(NoSpaceError)")
    assert "1 attempt ended because a save failed" in failed
    assert main(["runs", "status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["last_checkpoint"]["bytes"] == 2_000_000
    assert [row["reason"] for row in found["failed_saves"]] == ["NoSpaceError"]


def test_the_status_tells_what_the_guard_did_and_that_faults_were_injected(run, capsys):
    assert main(["runs", "status", str(run)]) == 0
    quiet = capsys.readouterr().out
    assert "guard" not in quiet and "FAULTS" not in quiet
    for number in (1, 2):
        row = {"number": number, "at_step": 20 * number, "to_step": 10 * number, "to_n": 1}
        row |= {"jump_from_n": 5, "jump_samples": 64, "why": "3 steps in a row were spikes"}
        append_row(run / "rewinds.jsonl", {**row, "time": 1000.0 * number})
    append_row(run / "metrics.jsonl", {"step": 12, "time": 3.0, "guard/nonfinite_steps": 1.0})
    for rank in range(3):
        fault = {"time": 2000.0, "fault": f"kill:at=save.write,rank={rank}", "rank": rank}
        append_row(run / "faults.jsonl", {**fault, "step": 5, "pid": 1})
    evidence = run / "guard" / "step-000000040-1" / "evidence.json"
    evidence.parent.mkdir(parents=True)
    evidence.write_text("{}")
    assert main(["runs", "status", str(run)]) == 0
    lines = lines_of(capsys)
    assert f"guard's evidence {evidence}" in lines
    assert "guard            2 rewinds, 128 samples jumped, 1 non-finite step" in lines
    (last,) = [line for line in lines if "rewind 2 at" in line]
    assert last.endswith("from step 40 back to 20, 64 samples jumped: 3 steps in a row were spikes")
    assert "!!! FAULTS !!!   INJECTED ON PURPOSE, 3 of them: kill 3" in lines
    assert main(["runs", "status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ([row["number"] for row in found["rewinds"]], len(found["faults"])) == ([1, 2], 3)


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
        "config.yaml:2: trian: unknown key. Did you mean train? (and 1 more) - - - - - -".split()
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
    assert "; it was asked before to save" in capsys.readouterr().out
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
    assert state_of(run).startswith("silent: for ")
    (run / "heartbeats").mkdir()
    beat_path(run, 0).write_text("{}")
    assert state_of(run).startswith("running: last sign 0 s ago")


def test_the_estimated_end_says_what_it_is_estimated_from(run, capsys):
    restart(run)
    began_at = time.time()  # asked once: however slowly the rows are written, a step takes 1 s
    for step in range(1, 5):
        row = {"step": 12 + step, "time": began_at + step, "speed/step_seconds": 1.0}
        append_row(run / "metrics.jsonl", row)
    assert main(["runs", "status", str(run)]) == 0
    (line,) = [t for t in capsys.readouterr().out.splitlines() if t.startswith("estimated end")]
    assert "(in 16 min 28 s) at the speed of the last 3 steps; " in line
    assert line.endswith("with the goodput so far, 0%")
    assert main(["runs", "status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["forecast"]
    assert (found["steps_left"], round(found["seconds_left"])) == (988, 988)


def test_the_status_tells_of_checkpoints_that_are_cut_or_gone(run, capsys):
    place = LocalPlace(run / "checkpoints")
    for step in (4, 6, 8):
        save(place, step)
        log_commit(run, step)
    cut = next((run / "checkpoints/step-000000006").glob("rank-00001*"))
    os.truncate(cut, 9)
    (run / "checkpoints/step-000000008/manifest.json").write_text("{}")
    assert main(["runs", "status", str(run)]) == 0
    damaged = [line for line in lines_of(capsys) if line.startswith("damaged")]
    words = [f"step-000000006: {cut.name} (9 bytes in place of", "step-000000008"]
    words += ["step-000000010: its manifest.json cannot be read: No such file or directory"]
    assert [text in line for text, line in zip(words, damaged, strict=True)] == [True] * 3
    log_removal = {"event": "remove", "step": 10, "time": time.time()}
    append_row(run / "commits.jsonl", log_removal)
    assert len(read_page(run).damaged) == 2
