"""Runs whose nodes, processes or settings fail."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from cluster import wait_until
from jobs import Lab

pytestmark = [pytest.mark.slurm, pytest.mark.ranks, pytest.mark.slow]


@pytest.mark.parametrize("lost", ["n1", "n2"], ids=["of-the-batch-script", "of-other-ranks"])
def test_a_run_goes_on_with_fewer_ranks_when_a_node_is_lost(lab: Lab, lost: str):
    for node in ("n3", "n4"):
        lab.cluster.drain(node)
    run = lab.submit(nodes="1-2")
    run.wait_for_step(12)
    assert "starting 2 ranks on 2 nodes" in run.output()
    lab.cluster.lose_node(lost)
    run.wait_for_start(2)
    run.hurry()
    assert run.wait_for_end()["action"] == "done"
    assert run.events("start")[-1]["step"] >= 10
    assert "starting 1 rank on 1 node" in run.output()
    run.assert_whole()


def test_of_two_live_copies_the_older_one_ends_without_a_trace(lab: Lab):
    """A slurmd dies alone: the cluster gives its node up, but what it started goes on."""
    run = lab.submit(nodes="1", pace=2)  # the cluster needs half a minute to notice
    run.wait_for_step(2)
    old = run.ranks("n1")
    assert len(old) == 1
    lab.cluster.kill_daemon("n1")
    run.wait_for_start(2)
    new = run.events("start")[1]["nodes"]
    assert new != "n1"
    wait_until(lambda: len(run.ranks(new)) == 1, 60, "the new copy")
    assert len(run.ranks("n1")) == 1, "the older copy ended too early for this test"
    wait_until(lambda: not run.ranks("n1"), 90, "the older copy's end")
    run.hurry()
    assert run.wait_for_end()["action"] == "done"
    assert "was taken over by attempt" in (run.folder / "logs/rank-00000.log").read_text()
    # For srun the tasks of a node that was given up are over, with exit code 0. They are not.
    assert [row["action"] for row in run.events("end")] == ["requeued", "done"]
    assert lab.cluster.job(run.job)["Restarts"] == "1"
    run.assert_whole()


def test_a_crashed_rank_restarts_the_run_as_often_as_the_profile_allows(lab: Lab):
    run = lab.submit(max_restarts=1)
    for number, step in ((1, 12), (2, 22)):
        run.wait_for_start(number)
        run.wait_for_step(step)
        run.wait_for_rank("n2").send(signal.SIGKILL)
    assert run.wait_for_end("FAILED")["action"] == "stop"
    first, second = run.events("end")
    assert first["action"] == "requeue" and "restart 1 of at most 1" in first["reason"]
    assert "after 1 restarts, the most that the profile allows" in second["reason"]
    again = lab.submit(pace=0)
    assert again.wait_for_end()["action"] == "done"
    again.assert_whole()


def test_a_run_that_crashes_before_its_first_step_again_and_again_is_stopped(lab: Lab):
    run = lab.submit(nodes="1")
    for number in (1, 2):
        node = run.wait_for_start(number)["nodes"]
        run.wait_for_rank(node).send(signal.SIGKILL)
    assert run.wait_for_end("FAILED")["action"] == "stop"
    first, second = run.events("end")
    assert first["action"] == "requeue"
    assert "no step was committed since the last restart" in second["reason"]
    assert second["reason"] in run.status()["detail"]


def test_a_rank_that_hangs_is_named_and_dumped_and_the_run_restarts(lab: Lab):
    watch = {"heartbeat_seconds": 0.5, "report_seconds": 4, "limit_seconds": 10}
    overrides = {"stream.workers": 1, **{f"watch.{key}": value for key, value in watch.items()}}
    run = lab.submit(overrides=overrides)
    run.wait_for_step(12)
    processes = lab.cluster.processes("n2")
    workers = [process for process in processes if "lmscale.stream.worker" in process.command]
    assert workers
    for worker in workers:
        worker.send(signal.SIGSTOP)
    run.wait_for_start(2)
    run.hurry()
    assert run.wait_for_end()["action"] == "done"
    reports = [str(row) for row in run.rows("watch.jsonl")]
    assert any("rank 1 on n2 in data" in row for row in reports), reports
    stacks = [run.folder / f"logs/stacks-rank-0000{number}.txt" for number in (0, 1)]
    assert all("train_steps" in path.read_text() for path in stacks)
    assert run.events("end")[0]["action"] == "requeue"
    run.assert_whole()


def test_a_bad_node_is_excluded_and_remembered(lab: Lab):
    scratch = str(lab.cluster.folder / "scratch")
    lab.cluster.inside("n1", *"mount -t tmpfs -o size=64k tmpfs".split(), scratch)
    cordon = lab.folder / "cordon"
    settings = {"preflight": {"enabled": True, "cordon_file": str(cordon)}}
    try:
        run = lab.submit(pace=0, **settings)
        assert run.wait_for_end()["action"] == "done"
        (excluded,) = run.events("exclude")
        assert excluded["nodes"] == "n1" and "free" in excluded["reason"]
        assert [row["nodes"] for row in run.events("start")] == ["n[1-2]", "n[2-3]"]
        assert lab.cluster.job(run.job)["ExcNodeList"] == "n1"
        assert "n1" in cordon.read_text()
        run.assert_whole()
        later = lab.submit("later", pace=0, nodes="1", **settings)
        assert lab.cluster.job(later.job)["ExcNodeList"] == "n1"
    finally:
        lab.cluster.inside("n1", "umount", scratch)


def test_a_mistake_that_only_the_job_can_see_ends_it_for_good(lab: Lab):
    shards = lab.folder / "shards"
    shutil.copytree(lab.data / "shards", shards)
    overrides = {f"stream.sources.{name}.shards": str(shards / name / "train") for name in "ab"}
    run = lab.submit(overrides=overrides, nodes="1", tasks_per_node=2, sbatch_options=["--hold"])
    Path(shards / "a/train/manifest.json").unlink()
    lab.cluster.run("scontrol", "release", run.job)
    assert run.wait_for_end("FAILED")["action"] == "stop"
    (end,) = run.events("end")
    assert end["code"] == 2
    assert lab.cluster.job(run.job)["ExitCode"] == "2:0"
    assert "manifest" in run.output() and "Traceback" not in run.output()
