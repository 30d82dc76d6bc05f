"""Runs that are asked to stop: by the time limit, a more important job, or a person."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cluster import wait_until
from jobs import START_SECONDS, STEPS, Lab, Run
from tiny_run import committed_steps

pytestmark = [pytest.mark.slurm, pytest.mark.ranks, pytest.mark.slow]


# Only what is asked for is saved, and the end.
ASKED_ONLY = {"checkpoint.every_steps": STEPS}


def assert_saved_where_it_stood(run: Run) -> None:
    """No step was done twice: the first attempt's end is where the second one began."""
    end, start = run.events("end")[0], run.events("start")[1]
    assert (end["code"], end["action"]) == (75, "requeue")
    assert start["step"] == end["step"] > 0


def test_a_run_is_submitted_and_finishes(lab: Lab):
    run = lab.submit(pace=0, tasks_per_node=2, preflight={"enabled": True})
    assert run.wait_for_end()["action"] == "done"
    (start,) = run.events("start")
    assert (start["nodes"], start["step"]) == ("n[1-2]", -1)
    assert "preflight: 2 nodes are fit" in run.output()
    assert "starting 4 ranks on 2 nodes" in run.output()
    run.assert_whole()


def test_a_run_saves_before_the_time_limit_and_goes_on_in_the_next_attempt(lab: Lab):
    run = lab.submit(overrides=ASKED_ONLY, pace=1, time="0:30:00", signal_seconds=540)
    run.wait_for_step(4)
    # The time to signal has come at once; Slurm looks at limits every 30 s.
    lab.cluster.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=9")
    run.wait_for_text("USR1: asking the ranks to save")
    lab.cluster.run("scontrol", "update", f"JobId={run.job}", "TimeLimit=20")
    run.wait_for_start(2)
    run.hurry()
    assert run.wait_for_end()["action"] == "done"
    assert_saved_where_it_stood(run)
    assert "USR1" in run.events("end")[0]["reason"]
    run.assert_whole()


def test_a_run_makes_room_for_a_job_of_a_higher_partition_and_comes_back(lab: Lab):
    run = lab.submit(overrides=ASKED_ONLY, partition="low")
    run.wait_for_step(4)
    preempt(lab, run)
    run.hurry()
    assert run.wait_for_end()["action"] == "done"
    assert_saved_where_it_stood(run)
    run.assert_whole()


def requeue(lab: Lab, run: Run) -> None:
    lab.cluster.run("scontrol", "requeue", run.job)


def requeue_into_a_hold(lab: Lab, run: Run) -> None:
    lab.cluster.run("scontrol", "requeuehold", run.job)
    release(lab, run)


def requeue_and_hold(lab: Lab, run: Run) -> None:
    """Held while it waits in the queue."""
    requeue(lab, run)
    lab.cluster.wait_for(run.job, "PENDING")
    lab.cluster.run("scontrol", "hold", run.job)
    release(lab, run)


def release(lab: Lab, run: Run) -> None:
    assert lab.cluster.wait_for(run.job, "PENDING")["Priority"] == "0"
    assert run.status()["state"] == "held"
    lab.cluster.run("scontrol", "release", run.job)


def preempt(lab: Lab, run: Run) -> None:
    urgent = lab.cluster.submit("--partition=high", "-N4", "--exclusive", script="sleep 1")
    lab.cluster.wait_for(urgent, "COMPLETED")


PROBE, RANK = "launcher.preflight.node_probe", "lmscale.cli.main train"


def test_a_run_that_is_requeued_held_or_preempted_in_any_phase_loses_that_start_alone(lab: Lab):
    """What a start has asked its ranks for may not meet the next one, which has loaded nothing yet.

    Each start's ranks are held there, where a signal would still end them, until they are seen.
    """
    run = lab.submit(nodes="1", partition="bare", preflight={"enabled": True}, held=PROBE)
    phases: list[tuple[str, int, Callable[[Lab, Run], None]]] = [
        (PROBE, 0, requeue),
        (RANK, 0, requeue_into_a_hold),
        (RANK, 4, requeue_and_hold),
        (RANK, 8, preempt),
    ]
    for number, (held, steps, interrupt) in enumerate(phases, 1):
        see_held(run, number, held)
        if steps:
            run.hold("")
            run.wait_for_step(steps)
            run.hold(RANK)  # the next start's
        interrupt(lab, run)
        run.hold(RANK)
    see_held(run, len(phases) + 1, RANK)
    run.hold("")
    run.hurry()
    assert run.wait_for_end()["action"] == "done"
    assert len(run.events("start")) == len(phases) + 1, run.report()
    # A script that Slurm kills (KillWait) before it comes to its last lines leaves no row.
    *earlier, last = [row["action"] for row in run.events("end")]
    assert last == "done" and set(earlier) <= {"requeued"}
    run.assert_whole()


def see_held(run: Run, number: int, words: str) -> None:
    """Wait until a process with ``words`` in its command is there in start ``number``."""
    node = run.wait_for_start(number)["nodes"]

    def is_there() -> bool:
        return any(words in process.command for process in run.lab.cluster.processes(node))

    wait_until(is_there, START_SECONDS, f"{words} of start {number}")


def test_a_run_that_is_asked_for_a_save_keeps_it_and_goes_on(lab: Lab):
    run = lab.submit(overrides=ASKED_ONLY)
    run.wait_for_step(4)
    # --full: to every process of the job, the batch script and srun among them
    lab.cluster.run("scancel", "--full", "--signal=USR2", run.job)
    wait_until(lambda: committed_steps(run.folder), 60, "a checkpoint")
    (asked,) = committed_steps(run.folder)
    run.hurry()
    assert run.wait_for_end()["action"] == "done"
    assert len(run.events("start")) == 1
    assert asked in committed_steps(run.folder)
    run.assert_whole()


def test_a_cancelled_run_saves_and_is_not_requeued(lab: Lab):
    run = lab.submit()
    run.wait_for_step(4)
    cancelled = lab.lmscale("runs", "cancel", run.folder)
    assert cancelled.code == 0 and "asked to save" in cancelled.output
    lab.cluster.wait_for(run.job, "COMPLETED", "FAILED", "CANCELLED")
    (end,) = run.events("end")
    assert (end["action"], end["step"]) == ("cancelled", len(run.ledger()))
    assert lab.cluster.job(run.job)["Restarts"] == "0"
    run.assert_whole(end["step"])


def test_scancel_is_not_outlived_and_the_run_goes_on_when_submitted_again(lab: Lab):
    run = lab.submit()
    run.wait_for_step(4)
    lab.cluster.run("scancel", run.job)
    assert run.wait_for_end("CANCELLED")["action"] == "cancelled"
    assert lab.cluster.job(run.job)["Restarts"] == "0"
    saved = run.events("end")[0]["step"]
    assert saved == len(run.ledger()) > 0
    again = lab.submit(pace=0, nodes="1", forked=False)  # a rank of Slurm's own, as in a user's job
    assert again.wait_for_end()["action"] == "done"
    assert again.events("start")[1]["step"] == saved
    again.assert_whole()


def test_where_requeue_is_forbidden_the_next_job_of_the_chain_goes_on(lab: Lab):
    run = lab.submit(requeue=False, chain=3)
    first, second, third = run.jobs
    run.wait_for_step(4)
    assert lab.cluster.job(second)["JobState"] == "PENDING"
    lab.cluster.run("scancel", "--batch", "--signal=USR1", first)  # as before the time limit
    run.wait_for_start(2)
    run.hurry()
    assert run.wait_for_end(job=second)["action"] == "done"
    assert run.events("end")[0]["action"] == "chain"
    assert run.events("start")[1]["step"] == run.events("end")[0]["step"] > 0
    lab.cluster.wait_for(third, "CANCELLED", "COMPLETED")
    assert len(run.events("start")) == 2
    run.assert_whole()


def test_a_sweep_is_one_array_with_a_table_of_results(lab: Lab):
    axis = "engine.optimizer.lr=1e-3,3e-3"
    run = lab.submit("rates", nodes="1", pace=0, options=["--array", axis])
    lab.cluster.wait_for(run.job, "COMPLETED", timeout=150)
    assert len(lab.cluster.tasks(run.job)) == 2
    listed = lab.lmscale("runs", "list", lab.folder, "--sweep", "rates-sweep", "--json")
    rows = json.loads(listed.output)["runs"]
    assert {row["state"] for row in rows} == {"finished"}
    assert {row["step"] for row in rows} == {STEPS}
    assert {row["values"]["engine.optimizer.lr"] for row in rows} == {"1e-3", "3e-3"}
    for row in rows:
        replace(run, folder=Path(row["folder"])).assert_whole()
