"""Ranks here are small real scripts: what is tested is how they live and end together."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher import local
from launcher.local import launch_local, plan_ranks, run_ranks, train_argv
from lmscale.errors import ConfigError
from lmscale.runs.profiles import ProfilePlan

ROOT = Path(__file__).parents[2]
# What every rank script begins with: it says that it listens, and how it stops on request.
LISTEN = """
import os, pathlib, signal, sys, time
rank = int(os.environ["RANK"])
stopped = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda n, frame: stopped.append(signal.Signals(n).name))
def announce(text="listening"):
    pathlib.Path(f"rank-{rank}.tmp").write_text(text)
    os.replace(f"rank-{rank}.tmp", f"rank-{rank}")
def wait_for_request():
    announce(str(os.getpid()))
    while not stopped:
        time.sleep(0.01)
"""


def plan(tmp_path, body, num_ranks=2):
    script = LISTEN + textwrap.dedent(body)
    return plan_ranks(
        [sys.executable, "-c", script],
        num_ranks=num_ranks,
        logs=tmp_path,
        port=1,
        cores=2,
        environ={},
    )


def run(tmp_path, monkeypatch, body, num_ranks=2):
    monkeypatch.chdir(tmp_path)
    return run_ranks(plan(tmp_path, body, num_ranks))


def start_launcher(tmp_path, body, before=""):
    """A launcher in a process of its own, whose ranks have all begun to listen; and their ids."""
    rank_script = LISTEN + textwrap.dedent(body)
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from launcher.local import plan_ranks, run_ranks
        argv = [sys.executable, "-c", {rank_script!r}]
        plans = plan_ranks(argv, num_ranks=2, logs=Path("."), port=1, cores=2, environ={{}})
        {before}
        outcome = run_ranks(plans)
        print(*outcome.problems)
        sys.exit(outcome.exit_code)
    """)
    launcher = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    files = [tmp_path / f"rank-{rank}" for rank in range(2)]
    until(lambda: all(file.exists() for file in files))
    return launcher, [int(file.read_text()) for file in files]


def until(condition, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_plan_gives_each_rank_its_place_its_threads_and_its_file(tmp_path):
    plans = plan_ranks(["x"], num_ranks=2, logs=tmp_path, port=7, cores=5, environ={})
    assert [p.environment["RANK"] for p in plans] == ["0", "1"]
    assert [p.output for p in plans] == [None, tmp_path / "rank-00001.out"]
    assert plans[1].environment["OMP_NUM_THREADS"] == "2"
    assert plans[1].environment["MASTER_ADDR"] == "127.0.0.1"


def test_a_users_own_thread_count_stands(tmp_path):
    environ = {"OMP_NUM_THREADS": "3"}
    plans = plan_ranks(["x"], num_ranks=1, logs=tmp_path, port=7, cores=5, environ=environ)
    assert "OMP_NUM_THREADS" not in plans[0].environment


def test_a_rank_runs_lmscale_train_with_the_same_overrides():
    argv = train_argv("c.yaml", ["train.steps=2", "run.name=x"])
    assert argv[1:] == (
        *("-m", "lmscale.cli.main", "train", "c.yaml"),
        *("--set", "train.steps=2", "--set", "run.name=x"),
    )
    profiled = train_argv("c.yaml", [], ProfilePlan(first=3, last=5))
    assert profiled[-4:] == ("--profile", "3:5", "--profile-ranks", "0")


def test_ranks_that_finish_give_0_and_keep_their_output(tmp_path, monkeypatch):
    outcome = run(tmp_path, monkeypatch, "print('rank', rank, os.environ['WORLD_SIZE'])")
    assert outcome.exit_code == 0
    assert (tmp_path / "rank-00001.out").read_text() == "rank 1 2\n"


def test_ranks_that_stop_resumably_give_75(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "sys.exit(75)").exit_code == 75


def test_one_ranks_failure_ends_the_others_promptly_and_is_the_one_shown(tmp_path, monkeypatch):
    # Nobody could wait until the other one is ended by force.
    monkeypatch.setattr(local, "FAILURE_SECONDS", 100_000.0)
    outcome = run(
        tmp_path,
        monkeypatch,
        """
        if rank == 1:
            raise ValueError("the real reason")
        wait_for_request()
        sys.exit(75)
        """,
    )
    assert outcome.exit_code == 1
    assert "ValueError: the real reason" in outcome.problems[0]


def test_a_rank_that_ignores_everything_is_killed(tmp_path, monkeypatch):
    outcome = run(
        tmp_path,
        monkeypatch,
        """
        if rank == 1:
            print("error: no such shard"); sys.exit(2)
        announce(str(os.getpid()))
        while True:
            time.sleep(1)
        """,
    )
    assert outcome.exit_code == 2
    assert "error: no such shard" in outcome.problems[0]
    assert is_gone(int((tmp_path / "rank-0").read_text()))


def test_a_rank_that_the_kernel_killed_is_named(tmp_path, monkeypatch):
    outcome = run(
        tmp_path,
        monkeypatch,
        """
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for_request()
        """,
    )
    assert outcome.exit_code == 1
    assert outcome.problems[0].startswith("rank 1 was killed by SIGKILL (out of memory?)")


def test_the_words_of_a_rank_that_ends_at_once_are_shown(tmp_path, monkeypatch):
    def start_and_wait(*arguments, **settings):
        process = subprocess.Popen(*arguments, **settings)
        process.wait()
        return process

    stands_for = SimpleNamespace(**{**vars(subprocess), "Popen": start_and_wait})
    monkeypatch.setattr(local, "subprocess", stands_for)
    body = """
        if rank == 1:
            print("error: no such shard"); sys.exit(2)
    """
    assert "error: no such shard" in run(tmp_path, monkeypatch, body).problems[0]


def test_only_this_attempts_words_are_shown(tmp_path, monkeypatch):
    (tmp_path / "rank-00001.out").write_text("error: of an earlier attempt\n")
    outcome = run(tmp_path, monkeypatch, "print('error: new'); sys.exit(2 if rank else 0)")
    assert "new" in outcome.problems[0] and "earlier" not in outcome.problems[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_reaches_every_rank_and_the_launcher_waits_for_them(tmp_path, number):
    body = """
    wait_for_request()
    time.sleep(0.3)  # a checkpoint being written
    pathlib.Path(f"saved-{rank}").write_text(stopped[0])
    sys.exit(75)
    """
    launcher, _ = start_launcher(tmp_path, body)
    launcher.send_signal(number)
    launcher.communicate(timeout=300)
    assert launcher.returncode == 75
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in range(2)] == [number.name] * 2


def test_a_request_for_a_save_reaches_every_rank_and_is_no_request_to_stop(tmp_path):
    body = """
    announce(str(os.getpid()))
    pathlib.Path(f"asked-{rank}").write_text(signal.sigwait([signal.SIGUSR2]).name)
    wait_for_request()
    sys.exit(75)
    """
    launcher, _ = start_launcher(tmp_path, body)
    launcher.send_signal(signal.SIGUSR2)  # blocked in a rank since before it began
    until(lambda: all((tmp_path / f"asked-{rank}").exists() for rank in range(2)))
    assert launcher.poll() is None
    launcher.terminate()
    launcher.communicate(timeout=300)
    assert launcher.returncode == 75


def test_a_request_for_a_save_that_came_before_the_ranks_reaches_every_one(tmp_path):
    """`lmscale` blocks the signal from its first line on, and the launcher takes it from there."""
    body = """
    pathlib.Path(f"asked-{rank}").write_text(signal.sigwait([signal.SIGUSR2]).name)
    wait_for_request()
    sys.exit(75)
    """
    block = "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])"
    launcher, _ = start_launcher(
        tmp_path, body, before=f"{block}; os.kill(os.getpid(), signal.SIGUSR2)"
    )
    launcher.send_signal(signal.SIGUSR2)  # and it goes on listening
    launcher.terminate()
    launcher.communicate(timeout=300)
    assert launcher.returncode == 75


def test_when_all_ranks_have_ended_a_late_request_for_a_save_does_not_kill_the_launcher(tmp_path):
    launcher, _ = start_launcher(
        tmp_path,
        "wait_for_request(); sys.exit(75)",
        before="""import os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        import atexit; atexit.register(lambda: os.kill(os.getpid(), signal.SIGUSR2))""",
    )
    launcher.terminate()
    launcher.communicate(timeout=300)
    assert launcher.returncode == 75


def test_a_rank_that_does_not_listen_yet_may_take_its_peers_along(tmp_path):
    body = """
    if rank == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    wait_for_request()
    print("Connection closed by peer")
    sys.exit(2)
    """
    launcher, _ = start_launcher(tmp_path, body)
    launcher.send_signal(signal.SIGTERM)
    said, _ = launcher.communicate(timeout=300)
    assert (launcher.returncode, said.strip()) == (75, "")


def test_a_closed_terminal_stops_the_ranks_as_sigterm_does(tmp_path):
    launcher, _ = start_launcher(tmp_path, "wait_for_request(); announce(stopped[0]); sys.exit(75)")
    launcher.send_signal(signal.SIGHUP)
    launcher.communicate(timeout=300)
    assert launcher.returncode == 75
    assert (tmp_path / "rank-0").read_text() == "SIGTERM"


def test_no_rank_outlives_a_launcher_that_was_killed(tmp_path):
    launcher, ranks = start_launcher(tmp_path, "wait_for_request()")
    launcher.kill()
    launcher.communicate(timeout=300)
    until(lambda: all(map(is_gone, ranks)))


def test_a_ranks_workers_end_with_it(tmp_path, monkeypatch):
    outcome = run(
        tmp_path,
        monkeypatch,
        """
        import subprocess
        if rank == 0:
            worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            announce(str(worker.pid))
        os._exit(0)
        """,
    )
    assert outcome.exit_code == 0
    until(lambda: is_gone(int((tmp_path / "rank-0").read_text())))


def test_a_batch_that_cannot_be_dealt_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("run: {name: a}\nbatch: {global_windows: 8}\n")
    with pytest.raises(ConfigError, match="cannot be dealt evenly to 3 ranks"):
        launch_local("c.yaml", [], num_ranks=3)
    assert not (tmp_path / "runs").exists()


def test_no_rank_at_all_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one rank"):
        launch_local(tmp_path / "c.yaml", [], num_ranks=0)
