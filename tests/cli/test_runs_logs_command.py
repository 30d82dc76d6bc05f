"""``lmscale runs logs`` on a run's folder."""

import signal
import subprocess
import sys

from lmscale.cli.main import main


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
