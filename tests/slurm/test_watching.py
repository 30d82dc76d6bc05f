"""``lmscale runs`` beside a real Slurm: real batch scripts around a trainer without a model."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until
from demands import demand, why_no_cluster
from forked_processes import forking

import lmscale
from launcher.options import LaunchOptions
from launcher.render import render
from launcher.submit import prepare, submit
from lmscale.cli.main import main

ROOT = Path(lmscale.__file__).parents[1]
TOY = Path(__file__).with_name("toy_trainer.py")
LONG = 10_000  # steps: far longer than any test
PROFILE = """\
partition: {partition}
time: "{time}"
signal_seconds: {signal_seconds}
requeue: {requeue}
chain: {chain}
tasks_per_node: 2
memory_per_node: 100M
variables: {variables}
sbatch_options: {options}
preflight: {{enabled: false}}
"""


class Toys:
    """Submits runs of the toy trainer, and looks at them by the commands that a person types."""

    def __init__(self, cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.cluster, self.folder, self.runs = cluster, folder, folder / "runs"
        self._capsys = capsys

    def submit(
        self,
        name: str = "toy",
        *,
        steps: int = LONG,
        nodes: str = "2",
        axes: tuple[str, ...] = (),
        **profile: Any,
    ) -> Path:
        given = {"partition": "main", "signal_seconds": 60, "requeue": "true", "chain": 1}
        given |= {"options": "[]", "time": "0:10:00", **profile}
        given["variables"] = json.dumps(forking() | given.get("variables", {}))
        cluster = self.folder / "profile.yaml"
        cluster.write_text(PROFILE.format(**given))
        run = self.runs / name
        config = self.folder / f"{name}.yaml"
        config.write_text(
            f"run: {{name: {name}, folder: {run}}}\ntrain: {{steps: {steps}}}\n"
            "batch: {global_windows: 8, micro_windows: 1}\n"
        )
        options = LaunchOptions(
            config=config,
            cluster=str(cluster),
            nodes=nodes,
            axes=axes,
            sweep=name if axes else None,
        )
        prepared = prepare(options)
        job = prepared.job
        own = () if job.members else (str(job.config),)
        job = replace(job, code=ROOT, command=(sys.executable, str(TOY), *own))
        submit(replace(prepared, job=job, script=render(job)))
        return run

    def lmscale(self, *words: object) -> str:
        self._capsys.readouterr()
        assert main([str(word) for word in words]) == 0, self._capsys.readouterr().err
        return self._capsys.readouterr().out

    def status(self, run: Path) -> dict[str, Any]:
        return json.loads(self.lmscale("runs", "status", run, "--json"))

    def wait(
        self, run: Path, *states: str, also: Callable[[dict], Any] = lambda status: True
    ) -> dict[str, Any]:
        """Wait until the run is in one of ``states``, and return its status."""
        seen: dict[str, Any] = {}

        def has_arrived() -> bool:
            seen.update(self.status(run))
            return seen["state"] in states and bool(also(seen))

        try:
            wait_until(has_arrived, 60, " or ".join(states))
        except TimeoutError as error:
            output = "\n".join(p.read_text() for p in sorted((run / "slurm").glob("job-*.out")))
            raise AssertionError(f"{error}; it is {seen}\n{output}") from None
        return seen


@pytest.fixture
def toys(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Toys:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return Toys(cluster, tmp_path, capsys)


@pytest.fixture
def accounted_toys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Toys]:
    """On a cluster of its own that keeps accounts, which takes a database."""
    demand(why_no_cluster())
    reason = why_no_cluster(accounting=True)
    if reason is not None:
        pytest.skip(reason)
    with Cluster(nodes=2, accounting=True) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        yield Toys(cluster, tmp_path, capsys)


def has_begun(status: dict[str, Any]) -> bool:
    return status["step"] > 2


def test_a_run_is_queued_then_runs_then_has_finished(toys):
    hog = toys.cluster.submit("-N4", "--exclusive", script="sleep 60")
    toys.cluster.wait_for(hog, "RUNNING")
    run = toys.submit(steps=30)
    (run / "hold").touch()
    waiting = toys.wait(run, "queued", also=lambda s: s["reason"] == "Resources")
    assert "waits for nodes (Resources)" in waiting["detail"]
    assert waiting["source"] == "squeue"
    assert not (run / "config.yaml").exists()  # no rank has started
    (row,) = toys.lmscale("runs", "list", toys.runs).splitlines()[1:]
    assert row.startswith("toy  queued: ") and "0/30" in row

    toys.cluster.run("scancel", hog)
    running = toys.wait(run, "running")
    # Which two of the four: Slurm says, as one that the job before had may not be idle yet.
    assert re.fullmatch(r"n\[\d[-,]\d\]", running["nodes"]) and running["left_seconds"] <= 600
    (run / "hold").unlink()
    done = toys.wait(run, "finished")
    assert done["step"] == 30
    (stretch,) = done["history"]
    assert (stretch["first_step"], stretch["last_step"], stretch["ranks"]) == (0, 30, 4)
    assert stretch["end"] == "finished"
    logged = toys.lmscale("runs", "logs", run).splitlines()
    assert {line.split()[0] for line in logged} == {"[0]", "[1]", "[2]", "[3]"}
    assert sum("finished" in line for line in logged) == 4
    assert "starting 4 ranks on 2 nodes" in toys.lmscale("runs", "logs", run, "--job")
    assert "nothing runs or waits: finished" in toys.lmscale("runs", "cancel", run)


def test_a_cancelled_run_saves_ends_and_does_not_come_back(toys):
    run = toys.submit()
    job = toys.wait(run, "running", also=has_begun)["job"]
    said = toys.lmscale("runs", "cancel", run)
    assert f"job {job} on n[1-2]: asked to save and to end for good" in said
    again = json.loads(toys.lmscale("runs", "cancel", run, "--json"))
    assert not again["jobs"] or again["jobs"][0]["was_asked_before"]
    done = toys.wait(run, "cancelled")
    assert toys.cluster.job(job)["Restarts"] == "0"
    (stretch,) = done["history"]
    assert stretch["last_step"] == done["step"] > 0  # saved where it stood
    assert done["checkpoints"][-1] == f"step-{done['step']:09d}"
    assert "nothing runs or waits: cancelled" in toys.lmscale("runs", "cancel", run)


def test_now_ends_a_run_without_saving(toys):
    run = toys.submit()
    job = toys.wait(run, "running", also=has_begun)["job"]
    assert "cancelled" in toys.lmscale("runs", "cancel", run, "--now")
    toys.cluster.wait_for(job, "CANCELLED")
    assert toys.wait(run, "cancelled")["job"] == job


def test_cancelling_a_chain_leaves_none_of_its_jobs(toys):
    run = toys.submit(requeue="false", chain=3)
    jobs = toys.wait(run, "running", also=has_begun)["submissions"][0]["jobs"]
    result = json.loads(toys.lmscale("runs", "cancel", run, "--json"))
    assert [entry["job"] for entry in result["jobs"]] == [*jobs[1:], jobs[0]]
    assert [entry["done"] for entry in result["jobs"]] == [
        "cancelled",
        "cancelled",
        "asked to save and end",
    ]
    toys.wait(run, "cancelled")
    assert not toys.cluster.run("squeue", "-h")


def test_a_held_job_says_how_it_is_let_go(toys):
    run = toys.submit(options="[--hold]")
    held = toys.wait(run, "held")
    assert f"`scontrol release {held['job']}` lets it go" in held["detail"]
    said = toys.lmscale("runs", "cancel", run)
    assert f"job {held['job']}, pending in the queue: cancelled" in said
    assert toys.wait(run, "cancelled")["detail"] == "before it began"


def test_a_restart_at_the_time_limit_is_told_with_its_reason(toys):
    run = toys.submit(time="0:02:00", signal_seconds=110)
    status = toys.wait(run, "running", also=lambda s: len(s["history"]) > 1 and has_begun(s))
    first, second = status["history"][:2]
    assert first["end"].startswith("time limit: ") and first["end"].endswith(", requeued")
    assert first["action"] == "requeue" and second["restart"] == 1
    assert second["first_step"] == first["last_step"]
    assert status["history"][-1]["end"] == ""
    text = toys.lmscale("runs", "status", run)
    assert f"attempt 1        {time.strftime('%Y-%m-%d')}" in text
    assert "goes on" in text and "estimated end" in text
    toys.lmscale("runs", "cancel", run, "--now")


def test_a_sweep_is_a_table_by_loss_and_is_cancelled_as_one(toys):
    axes = ("engine.optimizer.lr=1e-3,3e-3,2e-3",)
    toys.submit("rates", steps=20, nodes="1", axes=axes)

    def rows() -> list[dict[str, Any]]:
        printed = toys.lmscale("runs", "list", toys.runs, "--sweep", "rates", "--json")
        return json.loads(printed)["runs"]

    wait_until(lambda: {row["state"] for row in rows()} == {"finished"}, 60, "the sweep's end")
    assert [row["values"]["engine.optimizer.lr"] for row in rows()] == ["1e-3", "2e-3", "3e-3"]
    table = toys.lmscale("runs", "list", toys.runs, "--sweep", "rates").splitlines()
    assert table[0].split() == "run engine.optimizer.lr state step loss tokens/s".split()
    assert table[1].split() == "rates-000 1e-3 finished 20/20 1.0500 1,000".split()
    assert "a sweep of 3 runs over engine.optimizer.lr" in toys.lmscale("runs", "list", toys.runs)

    toys.submit("slow", nodes="1", axes=axes)
    slow = toys.runs / "slow" / "slow-001"
    toys.wait(slow, "running", also=has_begun)
    cancelled = json.loads(toys.lmscale("runs", "cancel", toys.runs, "--sweep", "slow", "--json"))
    assert [len(result["jobs"]) for result in cancelled] == [1, 1, 1]
    assert toys.wait(slow, "cancelled")["job"].endswith("_1")
    assert "starting 2 ranks" in toys.lmscale("runs", "logs", slow, "--job")


def test_a_machine_without_slurm_shows_what_the_folder_shows(toys, monkeypatch, tmp_path):
    run = toys.submit()
    job = toys.wait(run, "running", also=has_begun)["job"]
    (tmp_path / "bin").mkdir()
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", str(tmp_path / "bin"))
        seen = toys.status(run)
        assert (seen["state"], seen["source"], seen["job"]) == ("running", "folder", job)
        assert seen["slurm_note"].startswith("Slurm was not asked")
        said = toys.lmscale("runs", "cancel", run)
        assert "asked by the file `stop`" in said and f"job {job} is noted as cancelled" in said
    toys.wait(run, "cancelled")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", str(tmp_path / "bin"))
        assert toys.status(run)["state"] == "cancelled"


def test_the_accounting_names_what_the_batch_script_cannot_know(accounted_toys):
    toys = accounted_toys
    toys.cluster.run("scontrol", "update", "PartitionName=low", "GraceTime=1")
    run = toys.submit(partition="low", variables={"TOY_IS_DEAF": "1"})
    toys.wait(run, "running", also=has_begun)
    toys.cluster.submit("-N2", "--exclusive", "--partition=high", script="sleep 1")
    # It hears nothing and is killed: no checkpoint, and no word about the end.
    status = toys.wait(
        run, "queued", "running", also=lambda s: "preempted" in s["history"][0]["end"]
    )
    assert status["history"][0]["end"] == "lost: no end was written (preempted)"
