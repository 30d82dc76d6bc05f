"""A task of srun finds its place, and becomes the rank's ``lmscale train``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.rank import CACHES, main, plan_environment
from launcher.rendezvous import rendezvous_from_slurm
from lmscale.errors import ClusterError
from lmscale.runs.installed import find_differences, parse_lock, read_installed, render_lock

TASK = {
    "SLURM_JOB_ID": "812",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_CPUS_PER_TASK": "6",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "12345",
}


def test_ranks_meet_where_the_batch_script_says():
    found = rendezvous_from_slurm(TASK)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "12345")
    assert (found["RANK"], found["WORLD_SIZE"], found["GROUP_RANK"]) == ("3", "4", "1")


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_half_a_meeting_place_is_none(missing):
    with pytest.raises(ClusterError, match=f"{missing} is not set: this is not a task"):
        rendezvous_from_slurm({k: v for k, v in TASK.items() if k != missing})


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1"])
def test_a_port_that_is_none_is_told_with_everything_else(port):
    with pytest.raises(ClusterError) as caught:
        rendezvous_from_slurm({**TASK, "MASTER_PORT": port, "SLURM_PROCID": "x"})
    assert len(caught.value.problems) == 2
    assert f"MASTER_PORT = {port!r} is not a TCP port." in caught.value.problems


def test_a_rank_is_told_which_steps_to_profile(monkeypatch):
    class StartedError(Exception):
        pass

    def start(program, argv, environment):
        raise StartedError(argv[argv.index("train") :])

    monkeypatch.setattr(os, "execve", start)
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    for words in ((), ("--profile", "3:5", "--profile-ranks", "0,7")):
        with pytest.raises(StartedError) as started:
            main([*words, "c.yaml"])
        assert started.value.args == (["train", "c.yaml", *words],)


def test_caches_of_compiled_kernels_are_local_to_the_node_unless_set():
    planned = plan_environment(
        {**TASK, "LMSCALE_SCRATCH": "/local/me", "TRITON_CACHE_DIR": "/mine"}
    )
    assert planned["TORCH_EXTENSIONS_DIR"] == "/local/me/torch_extensions"
    assert "TRITON_CACHE_DIR" not in planned
    assert not CACHES.keys() & plan_environment(TASK).keys()


def test_a_rank_takes_the_threads_of_its_own_cores_unless_told_otherwise():
    assert plan_environment(TASK)["OMP_NUM_THREADS"] == "6"
    assert "OMP_NUM_THREADS" not in plan_environment({**TASK, "OMP_NUM_THREADS": "2"})


def start(
    folder: Path, rank: int, *, options: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """A real task; the configuration is missing, so the rank that it becomes ends with 2."""
    exits = folder / "exits"
    exits.mkdir(exist_ok=True)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in CACHES},
        **TASK,
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(rank // 2),
        "SLURM_LOCALID": str(rank % 2),
        "LMSCALE_EXITS": str(exits),
        "LMSCALE_SCRATCH": str(folder / "scratch"),
        **more,
    }
    command = [
        "-m",
        "launcher.rank",
        str(folder / "none.yaml"),
        "--run-folder",
        str(folder / "run"),
        *options,
    ]
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


def test_a_rank_does_not_start_where_what_decides_figures_is_another(tmp_path):
    here = read_installed()
    lock, told = tmp_path / "requirements.lock", "numpy 1.0 → " + here.packages["numpy"]
    lock.write_text(render_lock(replace(here, packages={**here.packages, "numpy": "1.0"})))
    refused = start(tmp_path, 0, options=("--lock", str(lock)))
    assert refused.returncode == 2 and "none.yaml" not in refused.stderr
    assert told in refused.stderr and f"uv pip install -r {lock}" in refused.stderr
    assert "launch the run again" in refused.stderr
    assert (tmp_path / "exits/rank-00000").read_text() == "2\n"
    warned = start(tmp_path, 0, options=("--lock", str(lock), "--environment", "warn"))
    assert told in warned.stderr and "none.yaml: there is no such" in warned.stderr
    second = start(tmp_path, 3, options=("--lock", str(lock)))  # of its node: the first has looked
    assert second.returncode == 2 and told not in (tmp_path / "run/logs/rank-00003.out").read_text()
    less = {name: v for name, v in here.packages.items() if name != "numpy"}
    lock.write_text(render_lock(replace(here, packages=less)))
    refused = start(tmp_path, 0, options=("--lock", str(lock)))
    advice = f"`uv pip install -r {lock}` and `uv pip uninstall numpy`, or pip."
    assert "numpy not installed → " in refused.stderr and advice in refused.stderr


def test_the_first_attempt_records_what_the_submission_could_not_know(tmp_path):
    lock = tmp_path / "requirements.lock"
    done = start(tmp_path, 2, SLURM_LOCALID="0", options=("--lock", str(lock)))
    assert done.returncode == 2 and not lock.exists()  # rank 0 writes it
    start(tmp_path, 0, options=("--lock", str(lock)))
    assert find_differences(parse_lock(lock.read_text()), read_installed()).deciding == ()


def test_rank_0_keeps_the_jobs_output_and_the_others_have_a_file_each(tmp_path):
    first = start(tmp_path, 0)
    assert (
        first.returncode == 2 and "none.yaml: there is no such configuration file" in first.stderr
    )
    for attempt in (1, 2):
        other = start(tmp_path, 3)
        assert (other.returncode, other.stdout, other.stderr) == (2, "", "")
        text = (tmp_path / "run/logs/rank-00003.out").read_text()
        assert text.count("there is no such configuration file") == attempt  # appended
    assert (tmp_path / "scratch/triton").stat().st_mode & 0o777 == 0o700
    assert {path.name: path.read_text().strip() for path in (tmp_path / "exits").iterdir()} == {
        "rank-00000": "2",
        "rank-00003": "2",
    }


def test_a_task_that_cannot_find_its_place_says_so_and_leaves_its_exit_code(tmp_path):
    done = start(tmp_path, 1, SLURM_NODEID="")
    assert done.returncode == 2 and "error: SLURM_NODEID = '' is not a whole number." in done.stderr
    assert (tmp_path / "exits/rank-00001").read_text() == "2\n"


def test_a_scratch_that_cannot_be_written_costs_a_compilation_and_not_the_run(tmp_path):
    (tmp_path / "scratch").write_text("a file")
    done = start(tmp_path, 0)
    assert "TRITON_CACHE_DIR stays unset" in done.stderr
    assert "there is no such configuration file" in done.stderr  # it went on


def test_compiled_code_is_taken_from_no_folder_that_others_can_write_to(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch").chmod(0o777)
    done = start(tmp_path, 0)
    for name in CACHES:
        assert f"{name} stays unset: every user may write to {tmp_path}/scratch" in done.stderr


def test_a_rank_is_started_with_requests_for_a_save_waiting(tmp_path):
    lists = tmp_path / "python"  # in place of the interpreter that it becomes
    says = "print(*signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    lists.write_text(f"#!{sys.executable}\nimport signal\n{says}\n")
    lists.chmod(0o755)
    program = (
        "import sys; from launcher.rank import main; "
        f"sys.executable = {str(lists)!r}; main(['none.yaml'])"
    )
    environment = {**os.environ, **TASK}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert str(int(signal.SIGUSR2)) in done.stdout.split()


def test_a_data_task_works_in_the_folder_of_the_launch_and_by_the_frozen_code(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/c.yaml").write_text("run: {name: found}\n")
    (tmp_path / "here/lmscale").mkdir()
    (tmp_path / "here/lmscale/__init__.py").write_text("raise SystemExit('the clone ran')\n")
    command = ["-m", "launcher.task", str(tmp_path / "here"), "config", "show", "c.yaml"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "name: found" in done.stdout


def test_a_node_that_cannot_enter_the_folder_of_the_launch_may_not_be_the_users_mistake(tmp_path):
    command = ["-m", "launcher.task", str(tmp_path / "gone"), "config", "schema"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "cannot enter the folder of the launch" in done.stderr
