"""What Slurm's commands print, as values; and what is said when they do not answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import slurm
from launcher.slurm import (
    QueuedJob,
    clean_environment,
    parse_accounting,
    parse_duration,
    parse_instant,
    parse_queue,
    parse_submitted,
    sacct,
    sbatch,
    scancel,
    squeue,
    try_sbatch,
)
from lmscale.errors import ClusterError

# Printed by Slurm 22.05.8.
QUEUE = (
    "5_1|5|PENDING|root||N/A|UNLIMITED|JobArrayTaskLimit|\n"
    "12|12|RUNNING|ada|n[1-2]|2026-11-22T01:28:49|21:56:56|None|\n"
)
ACCOUNTS = (
    "12|NODE_FAIL|n[1-2]|2026-11-22T01:00:00|2026-11-22T01:00:05|2026-11-22T01:10:05\n"
    "12|CANCELLED by 1000|None assigned|2026-11-22T01:10:05|Unknown|Unknown\n"
)


def test_a_line_of_squeue_is_a_job():
    waiting, running = parse_queue(QUEUE)
    assert waiting.reason == "JobArrayTaskLimit" and waiting.starts_at is None
    assert waiting.left_seconds is None and waiting.is_active
    assert running == QueuedJob(
        job="12",
        raw_job="12",
        state="RUNNING",
        reason="",
        user="ada",
        nodes="n[1-2]",
        starts_at=parse_instant("2026-11-22T01:28:49"),
        left_seconds=79016.0,
    )


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"])
def test_a_job_that_has_ended_is_not_active(state):
    (job,) = parse_queue(QUEUE.splitlines()[0].replace("PENDING", state))
    assert not job.is_active


def test_a_line_of_sacct_is_an_attempt():
    lost, cancelled = parse_accounting(ACCOUNTS)
    assert (lost.state, lost.nodes) == ("NODE_FAIL", "n[1-2]")
    assert lost.ended_at == parse_instant("2026-11-22T01:10:05")
    assert (cancelled.state, cancelled.nodes) == ("CANCELLED", "")
    assert cancelled.started_at is None


def test_a_reason_with_a_bar_in_it_hides_no_job():
    (job,) = parse_queue(QUEUE.splitlines()[0].replace("JobArrayTaskLimit", "held | ask ada|"))
    assert (job.job, job.reason, job.is_active) == ("5_1", "held | ask ada|", True)


def test_lines_that_are_none_are_passed_over():
    assert parse_queue("slurm_load_jobs: something\n\n") == ()
    assert parse_accounting("\nx|y\n") == ()


def test_a_job_number_may_come_with_its_clusters_name():
    assert parse_submitted("123\n") == "123"
    assert parse_submitted("123;west\n") == "123"
    with pytest.raises(ClusterError, match="in place of a job's number"):
        parse_submitted("Submitted batch job 123")


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_is_its_seconds(days, hours, minutes, seconds):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_duration(f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}") == total
    if days == 0:
        assert parse_duration(f"{hours}:{minutes:02d}:{seconds:02d}") == total
    if days == hours == 0:
        assert parse_duration(f"{minutes}:{seconds:02d}") == total


@pytest.mark.parametrize("text", ["UNLIMITED", "INVALID", "NOT_SET", "N/A", ""])
def test_a_duration_that_is_none_is_none(text):
    assert parse_duration(text) is None and parse_instant(text) is None


def test_what_would_change_a_submission_behind_its_back_is_left_out():
    environment = {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_PARTITION": "debug",
        "SQUEUE_FORMAT": "%i",
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS_PER_NODE": "3",
        "RANK": "1",
        "MASTER_ADDR": "x",
        "NCCL_DEBUG": "INFO",
    }
    assert clean_environment(environment) == {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "NCCL_DEBUG": "INFO",
        "SLURM_TIME_FORMAT": "standard",
    }


@pytest.fixture
def commands(tmp_path: Path, monkeypatch) -> Path:
    """An otherwise empty folder of commands."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("state", "is_told"), [("RUNNING", True), ("COMPLETING", False), ("", False)]
)
def test_a_job_that_ends_before_its_signal_comes_is_no_error(commands, state, is_told):
    put(commands, "scancel", "exit 1")
    row = QUEUE.splitlines()[1].replace("RUNNING", state)
    put(commands, "squeue", f"echo '{row}'" if state else ":")
    if is_told:
        with pytest.raises(ClusterError, match="it gave no reason"):
            scancel(["1"], ["--signal=USR1"])
    else:
        scancel(["1"], ["--signal=USR1"])


def test_a_machine_without_slurm_is_told_in_plain_words(commands):
    for call in (
        lambda: squeue(["1"]),
        lambda: sacct(["1"]),
        lambda: scancel(["1"]),
        lambda: try_sbatch("#!/bin/bash\n"),
        lambda: sbatch(commands / "job.sh"),
    ):
        with pytest.raises(ClusterError, match="there is no such command on this machine"):
            call()


def test_a_controller_that_cannot_be_reached_is_told_as_such(commands):
    said = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    put(commands, "squeue", f'echo "{said}" >&2; exit 1')
    with pytest.raises(ClusterError, match=r"squeue cannot reach Slurm's controller: .*connect"):
        squeue(["1"])


def test_a_controller_that_does_not_answer_is_not_waited_for_without_end(commands, monkeypatch):
    put(commands, "squeue", "exec /bin/sleep 100000")
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ClusterError, match="squeue did not answer within"):
        slurm._call(["squeue"], timeout=slurm.TIMEOUT_SECONDS)


def test_a_submission_without_an_answer_may_have_been_made(commands, monkeypatch):
    put(commands, "sbatch", "exec /bin/sleep 60")
    monkeypatch.setattr(slurm, "SBATCH_SECONDS", 0.2)
    with pytest.raises(ClusterError, match="`squeue --me` shows whether it was submitted"):
        sbatch(commands / "job.sh")


def test_a_refusal_says_what_slurm_said_on_one_line(commands):
    put(
        commands,
        "sbatch",
        'echo "sbatch: error: invalid partition specified: nope" >&2\n'
        'echo "allocation failure: Invalid partition name specified" >&2; exit 1',
    )
    with pytest.raises(ClusterError) as caught:
        try_sbatch("#!/bin/bash\n")
    assert str(caught.value) == (
        "sbatch refused: invalid partition specified: nope; "
        "allocation failure: Invalid partition name specified"
    )


def test_a_job_that_slurm_has_forgotten_is_no_error(commands):
    said = "slurm_load_jobs error: Invalid job id specified"
    put(commands, "squeue", f'echo "{said}" >&2; exit 1')
    assert squeue(["999"]) == ()


def test_a_cluster_without_accounting_is_no_error(commands):
    put(commands, "sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert sacct(["1"]) == ()


def test_nothing_is_asked_about_no_jobs(commands):
    assert squeue([]) == () and sacct([]) == ()
    scancel([])
