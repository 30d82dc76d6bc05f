"""The test cluster itself: what the other tests of this folder rest on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from cluster import KEEPER, Cluster, new_folder, wait_until
from demands import demand, why_no_cluster

pytestmark = pytest.mark.slurm
FOREVER = "while :; do sleep 1; done"


def test_nodes_have_names_of_their_own_and_know_each_other(cluster: Cluster):
    command = "echo $(hostname) $(getent hosts n1 n2 n3 n4 | wc -l)"
    rows = cluster.run("srun", "--nodes=4", "bash", "-c", command).splitlines()
    assert sorted(rows) == ["n1 4", "n2 4", "n3 4", "n4 4"]


def test_gpus_are_handed_out_one_job_at_a_time(cluster: Cluster):
    script = f"echo $CUDA_VISIBLE_DEVICES > {cluster.folder}/$SLURM_JOB_ID; {FOREVER}"
    jobs = [cluster.submit("--gres=gpu:1", "--nodelist=n1", script=script) for _ in range(3)]
    outputs = [cluster.folder / job for job in jobs]
    wait_until(lambda: all(path.exists() for path in outputs[:2]), 20, "two running jobs")
    assert {path.read_text().strip() for path in outputs[:2]} == {"0", "1"}
    assert cluster.job(jobs[2])["JobState"] == "PENDING"


def test_scratch_is_local_to_a_node(cluster: Cluster):
    path = cluster.folder / "scratch/mine"
    cluster.inside("n1", "touch", str(path))
    command = f"if [ -e {path} ]; then hostname; fi"
    assert cluster.run("srun", "--nodelist=n1,n2", "bash", "-c", command) == "n1\n"


def test_a_job_of_low_priority_makes_room_and_comes_back(cluster: Cluster):
    low = cluster.submit("--partition=low", "--nodes=4", "--exclusive", script=FOREVER)
    cluster.wait_for(low, "RUNNING")
    high = cluster.submit("--partition=high", "--nodes=1", script="sleep 1")
    cluster.wait_for(high, "COMPLETED")
    assert cluster.wait_for(low, "RUNNING")["Restarts"] == "1"


def test_a_killed_daemon_leaves_its_job_alive(cluster: Cluster):
    job = cluster.submit("--nodelist=n3", script=FOREVER)
    cluster.wait_for(job, "RUNNING")
    wait_until(lambda: "slurm_script" in names(cluster, "n3"), 20, "the job's script")
    cluster.kill_daemon("n3")
    assert "slurmd" not in names(cluster, "n3") and "slurm_script" in names(cluster, "n3")
    cluster.start_node("n3")
    assert cluster.job(job)["JobState"] == "RUNNING"


def test_a_lost_node_takes_all_it_ran_with_it_and_the_job_starts_elsewhere(cluster: Cluster):
    job = cluster.submit("--nodes=2", script=f"srun sleep 1000 & {FOREVER}")
    cluster.wait_for(job, "RUNNING")
    lost = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()[-1]
    wait_until(lambda: "sleep" in names(cluster, lost), 20, "the job's step")
    before = [process.pid for process in cluster.processes(lost)]
    cluster.lose_node(lost)
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", 60, "the job's requeue")
    cluster.wait_for(job, "RUNNING")
    assert lost not in cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"])
    assert cluster.node_states()[lost].startswith("down")


def test_a_drained_node_gets_no_job(cluster: Cluster):
    cluster.drain("n2")
    assert "n2" not in cluster.run("srun", "--nodes=3", "hostname")


def test_two_clusters_run_side_by_side_and_leave_nothing(cluster: Cluster):
    with Cluster(nodes=1) as other:
        assert other.run("srun", "hostname") == "n1\n"
        assert other.shape.base_port != cluster.shape.base_port
        assert other.shape.address_of("n1") != cluster.shape.address_of("n1")
        job = other.submit(script=FOREVER)
        other.wait_for(job, "RUNNING")
    assert not other.folder.exists()
    assert leftovers(other.folder) == []
    assert cluster.run("srun", "hostname") == "n1\n"


def test_a_cluster_ends_with_a_killed_owner(cluster: Cluster):
    """Its daemons, its jobs, what forks of the owner hold open, and its folder."""
    folder = new_folder()
    owner = f"""
import os, sys, time
from contextlib import suppress
from pathlib import Path
sys.path.insert(0, {str(KEEPER.parent)!r})
from cluster import Cluster
with Cluster(Path({str(folder)!r}), nodes=1) as cluster:
    if os.fork() == 0:
        time.sleep(100_000)
        os._exit(0)
    cluster.wait_for(cluster.submit(script={FOREVER!r}), "RUNNING")
    print("up", flush=True)
    time.sleep(1000)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        assert len(leftovers(folder)) > 5
        process.kill()
        process.wait()
        # Not by the fork's end, for which nobody could wait.
        wait_until(lambda: not (folder.exists() or leftovers(folder)), 120, "the cluster's end")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the fork, and where this failed its owner
        process.communicate()


@pytest.mark.slow
def test_accounting_remembers_jobs():
    demand(why_no_cluster(accounting=True))
    with Cluster(nodes=1, accounting=True) as cluster:
        job = cluster.submit(script="true")
        cluster.wait_for(job, "COMPLETED")
        command = ("sacct", "--noheader", "--allocations", "--format=State", "--jobs", job)
        wait_until(lambda: cluster.run(*command).strip() == "COMPLETED", 20, "sacct")


def test_where_no_cluster_can_run_the_reason_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("demands.PROGRAMS", ("slurmctld-of-nobody",))
    reason = why_no_cluster()
    assert reason is not None
    assert reason.startswith("a test cluster needs ") or "apt-get install" in reason
    monkeypatch.delenv("LMSCALE_REQUIRE_SLURM", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get|needs"):
        demand(reason)
    monkeypatch.setenv("LMSCALE_REQUIRE_SLURM", "1")
    with pytest.raises(pytest.fail.Exception, match="LMSCALE_REQUIRE_SLURM is set, but"):
        demand(reason)


def names(cluster: Cluster, node: str) -> list[str]:
    return [process.name for process in cluster.processes(node)]


def leftovers(folder: Path) -> list[str]:
    """What still runs with the folder's name on its command line, or has it mounted."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            mounts = (path / "mountinfo").read_text()
        except OSError:
            continue
        if command and (str(folder).encode() in command or f"{folder}/" in mounts):
            found.append(command.decode(errors="replace"))
    return [row for row in found if "python" not in row]
