"""Real tasks of a step, two "nodes" told apart by the variables that srun would set."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from forked_processes import forking
from tiny_run import write_tiny_config

from launcher.preflight import cordon, node_checks
from launcher.preflight.__main__ import Place, find_place, look_at_node, main, read_reports
from launcher.rendezvous import find_free_port
from lmscale.config.cluster import load_cluster
from lmscale.errors import ClusterError

ROOT = Path(__file__).parents[3]
NODES = "n[1-2]"
ATTEMPT = "812.0"


class Step:
    """What the batch script prepares, and srun starts: one task on each of two nodes."""

    def __init__(self, folder, data, *, timeout_seconds=60):
        self.run = folder / "run"
        self.folder = self.run / "slurm" / "preflight" / ATTEMPT
        self.folder.mkdir(parents=True)
        (self.folder / "token").write_text(f"{ATTEMPT}\n")
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.config = write_tiny_config(folder / "config.yaml", data, self.run)
        self.cluster = self.write_profile(folder / "cluster.yaml", timeout_seconds, self.scratch)
        self.timeout_seconds = timeout_seconds
        self.port = find_free_port()

    @staticmethod
    def write_profile(path, timeout_seconds, scratch):
        preflight = f"{{timeout_seconds: {timeout_seconds}, min_free_gb: 0.01, all_reduce_mb: 4"
        preflight += ", command: echo all is well}"
        path.write_text(
            f"time: '00:10:00'\ntasks_per_node: 2\nscratch: {scratch}\npreflight: {preflight}\n"
        )
        return path

    def start(self, number, *, local_rank=0, forked=True, **changes):
        options = {"folder": self.folder, "run_folder": self.run, "cluster": self.cluster}
        options |= {"config": self.config} | changes
        command = [sys.executable, "-m", "launcher.preflight", "probe"]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        variables = {
            "SLURM_JOB_ID": "812",
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(2 * number + local_rank),
            "SLURM_LOCALID": str(local_rank),
            "SLURM_NODEID": str(number),
            "SLURM_STEP_NUM_TASKS": "4",
            "SLURM_STEP_NODELIST": NODES,
            "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
            "SLURMD_NODENAME": f"n{number + 1}",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
        }
        variables |= {"GLOO_SOCKET_IFNAME": "lo", **(forking() if forked else {})}
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, *tasks):
        """The output of each."""
        outputs = [task.communicate(timeout=self.timeout_seconds + 10)[0] for task in tasks]
        assert [task.returncode for task in tasks] == [0] * len(tasks), outputs
        return outputs

    def judge(self):
        arguments = ["--nodes", NODES, "--cluster", str(self.cluster)]
        return main(["judge", "--folder", str(self.folder), *arguments])

    def report(self, node):
        return json.loads((self.folder / f"{node}.json").read_text())

    @property
    def bad_nodes(self):
        lines = (self.folder / "bad-nodes").read_text().splitlines()
        return dict(line.split("\t") for line in lines)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_data):
    """The folder of a step that two good nodes have gone through."""
    step = Step(tmp_path_factory.mktemp("step"), tiny_data)
    assert step.end(step.start(0), step.start(1)) == ["", ""]
    return step


@pytest.fixture
def judged(measured, tmp_path):
    """The same step with a copy of its reports, to be doctored."""
    step = object.__new__(Step)
    step.__dict__ |= measured.__dict__
    step.folder = tmp_path / ATTEMPT
    shutil.copytree(measured.folder, step.folder)
    return step


def doctor(step, node, change):
    report = step.report(node)
    change(report)
    (step.folder / f"{node}.json").write_text(json.dumps(report))


@pytest.mark.ranks
def test_two_good_nodes_are_fit(judged, capsys):
    assert judged.judge() == 0
    assert judged.bad_nodes == {}
    head, first, second, *rest = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["node", "GPUs"]
    assert first.split()[:2] == ["n1", "none"] and first.endswith("fit")
    assert second.split()[:2] == ["n2", "none"] and second.endswith("fit")
    assert rest == ["preflight: 2 nodes are fit"]
    verdict = json.loads((judged.folder / "verdict.json").read_text())
    assert (verdict["code"], verdict["nodes"], verdict["bad"]) == (0, ["n1", "n2"], {})


@pytest.mark.ranks
def test_a_report_says_what_was_looked_at_and_how_long_it_took(measured):
    report = measured.report("n2")
    assert [check["check"] for check in report["checks"]] == [
        "run folder",
        "space in run folder",
        "space in scratch",
        "shards of a",
        "shards of b",
        "cores",
        "health check",
    ]
    assert all(check["ok"] for check in report["checks"])
    assert set(report["versions"]) == {"python", "torch", "lmscale", "libc"}
    seconds = report["seconds"]
    assert {"run folder", "shards", "total"} <= set(seconds)
    assert seconds["total"] < measured.timeout_seconds
    speed = report["speed"]
    assert (speed["part"], speed["absent"]) == ("done", [])
    assert speed["matmul_tflops"] > 0 and speed["all_reduce_gbs"] > 0
    # Nothing else was left behind.
    names = {path.name for path in measured.folder.iterdir()}
    assert names == {"token", "n1.json", "n2.json"}


def test_a_look_that_comes_too_late_changes_no_report(tmp_path, tiny_data, monkeypatch):
    step = Step(tmp_path, tiny_data)
    is_late, have_noted = threading.Event(), threading.Barrier(3)

    def look_late(name, folder, min_gb, free_gb):
        is_late.wait(60)
        free_gb[name] = 1.0
        have_noted.wait(60)
        return []

    monkeypatch.setattr(node_checks, "look_at_space", look_late)
    arguments = argparse.Namespace(folder=step.folder, run_folder=step.run, config=step.config)
    place = Place(node="n1", local_rank=0, num_tasks=1, variables={})
    report = look_at_node(arguments, load_cluster(str(step.cluster)), place, 0.1)
    is_late.set()
    have_noted.wait(60)  # for the looks at the run folder and at scratch
    assert report["free_gb"] == {}


@pytest.mark.parametrize("command", ["probe", "judge", "cordon", "lift"])
def test_a_job_can_be_named_where_the_cordon_file_names_it(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert ("the job that the cordon file names" in capsys.readouterr().out) is (command != "probe")


@pytest.mark.ranks
def test_a_skewed_clock_is_found_among_three_and_not_blamed_on_one_of_two(judged, capsys):
    def put_ahead(report):
        report["speed"]["met_at"] += 5.0

    doctor(judged, "n2", put_ahead)
    assert judged.judge() == 2
    assert judged.bad_nodes == {}
    assert "clock: +2.5 s" in capsys.readouterr().out
    shutil.copy(judged.folder / "n1.json", judged.folder / "n3.json")
    nodes = ["--nodes", "n[1-3]", "--cluster", str(judged.cluster)]
    assert main(["judge", "--folder", str(judged.folder), *nodes]) == 1
    assert judged.bad_nodes == {"n2": "clock: +5.0 s from the median node's"}


@pytest.mark.ranks
def test_a_report_that_is_cut_short_counts_as_none(judged):
    (judged.folder / "n2.json").write_text('{"node": "n2", "spe')
    assert judged.judge() == 1
    assert judged.bad_nodes["n2"].startswith("report: none")


@pytest.mark.ranks
@pytest.mark.parametrize("job", ["812", ""])
def test_the_judgement_of_a_job_remembers_its_bad_nodes(judged, tmp_path, capsys, job):
    """By itself, because it runs inside of the image; the batch script may have no Python."""
    (judged.folder / "n2.json").unlink()
    profile = tmp_path / "profile.yaml"
    file = tmp_path / "bad nodes"

    def judge(cordon_file, nodes="n[1-2]"):
        preflight = f"preflight: {{cordon_file: '{cordon_file}'}}"
        profile.write_text(f"time: '00:10:00'\ntasks_per_node: 2\n{preflight}\n")
        arguments = ["--nodes", nodes, "--cluster", str(profile), "--job", job]
        return main(["judge", "--folder", str(judged.folder), *arguments])

    assert judge(file, "n2") == 2  # nobody is blamed
    assert not file.exists()
    assert judge(file) == 1
    assert list(cordon.active(file, time.time(), 1)) == (["n2"] if job else [])
    assert judge(tmp_path) == 1  # a folder: it cannot be written, which changes no verdict
    assert ("the cordon file cannot be written" in capsys.readouterr().err) == bool(job)


@pytest.mark.ranks
def test_a_judgement_loads_nothing_that_takes_seconds(judged):
    """Every start of a job waits for it."""
    judge = ["judge", "--folder", str(judged.folder), "--nodes", NODES]
    judge += ["--cluster", str(judged.cluster)]
    script = "import sys; from launcher.preflight.__main__ import main; code = main(sys.argv[1:]); "
    script += "print(*sys.modules); sys.exit(code)"
    printed = subprocess.run(
        [sys.executable, "-c", script, *judge], cwd=ROOT, check=True, capture_output=True, text=True
    )
    loaded = printed.stdout.splitlines()[-1].split()
    assert "lmscale" in loaded
    assert not {"torch", "numpy", "fsspec", "jinja2", "rich", "typer"} & set(loaded)


@pytest.mark.ranks
def test_a_node_that_never_reports_holds_nobody_longer_than_agreed(tmp_path, tiny_data, capsys):
    step = Step(tmp_path, tiny_data, timeout_seconds=30)
    (output,) = step.end(step.start(0))
    assert output == ""
    speed = step.report("n1")["speed"]
    assert speed["part"] == "meeting" and speed["error"]
    assert speed["matmul_tflops"] > 0 and "all_reduce_gbs" not in speed
    assert step.judge() == 1
    assert list(step.bad_nodes) == ["n2"]
    assert "never answered" in step.bad_nodes["n2"]
    table = capsys.readouterr().out.splitlines()
    assert table[1].endswith("fit") and table[2].endswith("report")


@pytest.mark.ranks
def test_a_node_that_does_not_see_the_run_says_so_and_makes_no_folder(tmp_path, tiny_data):
    step = Step(tmp_path, tiny_data, timeout_seconds=120)
    elsewhere = tmp_path / "unmounted" / "slurm" / "preflight" / ATTEMPT
    good, bad = step.end(
        step.start(0), step.start(1, folder=elsewhere, run_folder=tmp_path / "unmounted")
    )
    assert good == ""
    assert "preflight: n2: run folder: " in bad and "is not to be seen from here" in bad
    assert not (tmp_path / "unmounted").exists()
    assert step.report("n1")["speed"]["part"] == "done"  # they met all the same
    assert step.judge() == 1
    assert list(step.bad_nodes) == ["n2"]


@pytest.mark.ranks
def test_one_nodes_full_scratch_is_named(tmp_path, tiny_data):
    full = tmp_path / "full"
    full.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs root and the right to mount, to make a full disk")
    try:
        step = Step(tmp_path, tiny_data)
        other = Step.write_profile(tmp_path / "other.yaml", 60, full)
        _, output = step.end(step.start(0), step.start(1, cluster=other))
        assert f"n2: space in scratch: 0.0 GB are free in {full}" in output
        assert step.judge() == 1
        assert step.bad_nodes == {
            "n2": f"space in scratch: 0.0 GB are free in {full}, 0.01 are wanted"
        }
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_without_gpus_only_the_first_task_of_a_node_does_anything(tmp_path, tiny_data):
    step = Step(tmp_path, tiny_data)
    assert step.end(step.start(0, local_rank=1, forked=False)) == [""]
    assert [path.name for path in step.folder.iterdir()] == ["token"]


def test_a_profile_that_cannot_be_read_ends_no_other_task(tmp_path, tiny_data):
    step = Step(tmp_path, tiny_data)
    (output,) = step.end(step.start(0, cluster=tmp_path / "none.yaml"))
    assert f"error: {tmp_path / 'none.yaml'}: cannot be read as a cluster profile" in output


SLURM = {
    "SLURM_JOB_ID": "812",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NODELIST": "gpu[01-03]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "12345",
}


def test_with_gpus_every_task_measures_and_reports():
    place = find_place(SLURM, uses_gpus=True)
    assert place is not None
    assert (place.node, place.local_rank, place.num_tasks) == ("gpu03", 1, 2)
    assert place.report == "gpu03.task-1.json"
    assert (place.variables["RANK"], place.variables["WORLD_SIZE"]) == ("5", "6")


def test_without_gpus_the_nodes_are_a_world_of_their_own():
    assert find_place(SLURM, uses_gpus=False) is None
    place = find_place(SLURM | {"SLURM_LOCALID": "0", "SLURM_PROCID": "4"}, uses_gpus=False)
    assert place is not None
    assert (place.num_tasks, place.report) == (1, "gpu03.json")
    variables = {name: place.variables[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    assert variables == {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "1"}
    named = find_place(SLURM | {"SLURM_LOCALID": "0", "SLURMD_NODENAME": "g3"}, uses_gpus=False)
    assert named is not None and named.node == "g3"


def test_outside_of_a_step_nothing_is_probed():
    with pytest.raises(ClusterError, match="not a task of an srun step"):
        find_place({}, uses_gpus=True)


def test_the_reports_of_a_nodes_tasks_are_read_together(tmp_path):
    (tmp_path / "n1.json").write_text(json.dumps({"tasks": 3, "speed": {"part": "done"}}))
    (tmp_path / "n1.task-2.json").write_text(json.dumps({"speed": {"part": "meeting"}}))
    reports = read_reports(tmp_path, ["n1", "n2"])
    assert reports["n2"] is None
    assert reports["n1"]["speeds"] == [{"part": "done"}, None, {"part": "meeting"}]
