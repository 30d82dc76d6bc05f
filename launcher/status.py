"""How a run goes: what its folder says and what Slurm says, put together. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from launcher.slurm import AccountedJob, QueuedJob
from lmscale.files.run_files import ALIVE_SECONDS

Row = Mapping[str, Any]
StateName = Literal[
    "not started",
    "queued",
    "held",  # queued, and stays so until somebody releases it
    "starting",  # its job runs, no step has begun
    "running",
    "hung",  # it runs, and the watchdog says that it stands still
    "silent",  # it should run, and has written nothing for long
    "suspended",
    "ending",
    "finished",
    "stopped",  # before its last step, and can go on
    "cancelled",
    "failed",
    "lost",  # it ended without a word
]
TRAIN = "train"
_STOP_REASONS = ("SIGTERM", "SIGUSR1", "SIGINT", "stop file")
_COMING_BACK = ("requeue", "requeued", "chain")
_JOB_STATES: Mapping[str, StateName] = {
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "REQUEUE_HOLD": "held",
}
_HELD = ("JobHeldUser", "JobHeldAdmin", "job requeued in held state", "launch failed requeued held")
_WAITS = {
    "Resources": "is the next in line and waits for nodes",
    "Priority": "other jobs stand before it",
    "Dependency": "waits for an earlier job to end",
    "DependencyNeverSatisfied": "waits for a job that can never end as it should: cancel it",
    "BeginTime": "may not begin yet",
    "Cleaning": "its last attempt is being cleared away",
    "JobArrayTaskLimit": "as many tasks of its array run as may at once",
    "JobHeldUser": "held: `scontrol release {job}` lets it go",
    "JobHeldAdmin": "held by an administrator",
    "job requeued in held state": "requeued and held: `scontrol release {job}` lets it go",
    "launch failed requeued held": "a node could not start it, so it is held: `scontrol release "
    "{job}` lets it go",
    "Licenses": "waits for a license",
    "Reservation": "waits for its reservation",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "PartitionNodeLimit": "asks for more nodes than the partition allows",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "InvalidAccount": "the account is not valid",
    "InvalidQOS": "the qos is not valid",
}
_WAITS_BY_PREFIX = {
    "QOS": "a limit of the qos is reached",
    "Assoc": "a limit of the account is reached",
    "MaxCpu": "a limit of the account is reached",
    "ReqNodeNotAvail": "nodes that it needs are not available",
}
# How Slurm's accounting calls an end, in words.
ENDS = {
    "BOOT_FAIL": "a node did not boot",
    "CANCELLED": "cancelled",
    "DEADLINE": "its deadline had passed",
    "FAILED": "the batch script failed",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "TIMEOUT": "time limit",
}


@dataclass(frozen=True, kw_only=True)
class FolderSigns:
    """What a run's folder says of it, without anybody being asked."""

    submissions: Sequence[Row] = ()
    events: Sequence[Row] = ()
    cancels: frozenset[str] = frozenset()
    """Jobs that were asked to end for good."""
    attempt_began_at: float | None = None
    """When the newest attempt began to train."""
    has_open_attempt: bool = False
    end_reason: str | None = None
    """Of the newest attempt."""
    is_finished: bool = False
    """With nothing submitted since."""
    last_sign: float | None = None
    """When the run last wrote anything."""
    hang: str | None = None
    """What the watchdog says of the newest start, if it stands still now."""


@dataclass(frozen=True, kw_only=True)
class SlurmAnswer:
    """What Slurm said about the jobs of one or more runs."""

    queue: Sequence[QueuedJob] = ()
    accounts: Sequence[AccountedJob] | None = None
    """None: the cluster keeps no accounting, or it did not answer."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One word, and one line that says the rest."""

    name: StateName
    detail: str = ""
    job: str | None = None
    nodes: str = ""
    reason: str = ""
    """Slurm's own word for why it waits."""
    starts_at: float | None = None
    """When Slurm expects a waiting job to start."""
    left_seconds: float | None = None
    """Of the running job's time limit."""
    source: Literal["folder", "squeue", "sacct"] = "folder"

    @property
    def line(self) -> str:
        rest = self.detail
        if own := re.match(rf"{self.name}\b[,:;]?\s*", rest):  # a reason may begin with the word
            rest = rest[own.end() :]
        return f"{self.name}: {rest}" if rest else self.name

    @property
    def is_active(self) -> bool:
        """Whether it goes on by itself."""
        names = ("queued", "held", "starting", "running", "hung", "silent", "suspended", "ending")
        return self.name in names


def judge_run(signs: FolderSigns, answer: SlurmAnswer | None, now: float) -> RunState:
    """The state of a run; ``answer`` None means that Slurm was not asked."""
    submission = newest_submission(signs.submissions)
    if submission is None or is_local(signs):
        return _judge_folder(signs, now)
    jobs = jobs_of(submission)
    if answer is None:
        return _judge_events(signs, jobs, now)
    known = [job for job in answer.queue if is_one_of(job.job, jobs)]
    active = sorted((job for job in known if job.is_active), key=_order)
    if active:
        return _judge_active(signs, active[0], now)
    ends = [a for a in answer.accounts or () if is_one_of(a.job, jobs) and _is_of(a, submission)]
    return _judge_gone(signs, jobs, known, ends)


def newest_submission(submissions: Sequence[Row], kind: str = TRAIN) -> Row | None:
    return next((row for row in reversed(submissions) if row["kind"] == kind), None)


def jobs_of(submission: Row) -> tuple[str, ...]:
    """Its job, or all jobs of its chain."""
    return tuple(map(str, submission.get("jobs") or [submission["job"]]))


def is_one_of(job: str, jobs: Iterable[str]) -> bool:
    """Whether ``job`` is among ``jobs``, or a task of an array that is."""
    return any(job == one or job.startswith(f"{one}_") for one in jobs)


def is_local(signs: FolderSigns) -> bool:
    """Whether the newest attempt was started without Slurm, in a folder that had jobs before."""
    if signs.attempt_began_at is None:
        return False
    submitted_at = max((row["time"] for row in signs.submissions), default=0.0)
    last = last_word(signs.events)
    if last is None:
        return signs.attempt_began_at > submitted_at and signs.has_open_attempt
    return last["event"] == "end" and signs.attempt_began_at > max(last["time"], submitted_at)


def last_word(events: Sequence[Row], jobs: Sequence[str] | None = None) -> Row | None:
    """The end of the newest start (of ``jobs``), or that start while it has none.

    Not the last row: an older copy of a job, which the newer one has fenced off, ends after it. Of
    two ends the later one: the batch script adds it when Slurm would not requeue.
    """
    rows = [row for row in events if jobs is None or is_one_of(str(row["job"]), jobs)]
    start = next((row for row in reversed(rows) if row["event"] == "start"), None)
    if start is None:
        return None
    name = (start["job"], start["restart"])
    own = (r for r in rows[::-1] if r["event"] == "end" and (r["job"], r["restart"]) == name)
    return next(own, start)


def _order(job: QueuedJob) -> tuple[int, int]:
    """A running job before one that waits, a chain's next one before those after it."""
    return (job.state == "PENDING", int(re.sub(r"\D.*", "", job.raw_job) or 0))


def _is_of(account: AccountedJob, submission: Row) -> bool:
    """Not a job of the same number before the accounting was begun anew."""
    return account.submitted_at is None or account.submitted_at > submission["time"] - 300


def _judge_folder(signs: FolderSigns, now: float) -> RunState:
    """Of a run that Slurm does not know."""
    if signs.has_open_attempt:
        return _judge_training(signs, now)
    if signs.end_reason is None:
        return RunState(name="not started")
    if signs.is_finished:
        return RunState(name="finished")
    if signs.end_reason in _STOP_REASONS:
        return RunState(name="stopped", detail=signs.end_reason)
    return RunState(name="failed", detail=signs.end_reason)


def _judge_training(signs: FolderSigns, now: float) -> RunState:
    silence = now - signs.last_sign if signs.last_sign is not None else 0.0
    if signs.hang is not None:
        return RunState(name="hung", detail=signs.hang)
    if silence >= ALIVE_SECONDS:
        return RunState(name="silent", detail=f"for {silence:,.0f} s")
    return RunState(name="running")


def _judge_active(signs: FolderSigns, job: QueuedJob, now: float) -> RunState:
    state = _judge_job(signs, job, now)
    return replace(
        state,
        job=job.job,
        nodes=job.nodes,
        reason=job.reason,
        starts_at=job.starts_at if state.name in ("queued", "held") else None,
        left_seconds=job.left_seconds if job.state == "RUNNING" else None,
        source="squeue",
    )


def _judge_job(signs: FolderSigns, job: QueuedJob, now: float) -> RunState:
    if job.state == "PENDING":
        name = "held" if job.reason in _HELD else "queued"
        return RunState(name=name, detail=describe_wait(job, now))
    if job.state == "COMPLETING":
        return RunState(name="ending", detail="its nodes are being cleared")
    if job.state != "RUNNING":  # CONFIGURING, SUSPENDED, REQUEUE_HOLD, …
        name = _JOB_STATES.get(job.state, "starting")
        return RunState(name=name, detail=job.state.lower())
    if _is_cancelled(signs, job):
        return RunState(name="ending", detail="asked to save and to end for good")
    if signs.hang is not None:
        return RunState(name="hung", detail=signs.hang)
    start = _last_event(signs.events, "start", job.job)
    began_at = max(start["time"] if start else 0.0, (job.starts_at or 0.0) - 5)
    if start is None or start["time"] < (job.starts_at or 0.0) - 5:
        return RunState(name="starting", detail="its batch script has not begun")
    if signs.attempt_began_at is None or signs.attempt_began_at < began_at:
        return RunState(name="starting", detail=f"no step yet, {now - start['time']:,.0f} s in")
    if signs.has_open_attempt:
        return _judge_training(signs, now)
    return RunState(name="ending", detail=str(signs.end_reason))


def _is_cancelled(signs: FolderSigns, job: QueuedJob) -> bool:
    return job.job in signs.cancels or job.raw_job in signs.cancels


def _last_event(events: Sequence[Row], kind: str, job: str) -> Row | None:
    return next((e for e in reversed(events) if e["event"] == kind and e["job"] == job), None)


def describe_wait(job: QueuedJob, now: float) -> str:
    """Why a job waits, in words and in Slurm's own."""
    prefixes = (words for start, words in _WAITS_BY_PREFIX.items() if job.reason.startswith(start))
    words = _WAITS.get(job.reason) or next(prefixes, "")
    if job.reason == "BeginTime" and job.starts_at is not None and job.starts_at > now:
        words = f"may begin in {job.starts_at - now:,.0f} s"
    if not job.reason:
        return "Slurm has not looked at it yet"
    own = job.reason.partition("(")[0].strip()
    return f"{words.format(job=job.job)} ({own})" if words else own


def _judge_gone(
    signs: FolderSigns,
    jobs: Sequence[str],
    known: Sequence[QueuedJob],
    ends: Sequence[AccountedJob],
) -> RunState:
    """Of jobs that have ended: by Slurm's last word on them, and the batch script's."""
    newest = max(ends, key=lambda end: (end.ended_at or 0, end.job), default=None)
    if newest is not None and newest.state not in ("PENDING", "RUNNING"):
        word, nodes, source = newest.state, newest.nodes, "sacct"
    elif known:  # without accounting Slurm remembers a job for some minutes
        last = max(known, key=lambda job: (job.starts_at or 0, job.job))
        word, nodes, source = last.state, last.nodes, "squeue"
    else:
        word, nodes, source = "", "", "folder"
    state = _judge_end(signs, jobs, word)
    return replace(state, job=state.job or jobs[-1], nodes=nodes, source=source)


def _judge_end(signs: FolderSigns, jobs: Sequence[str], word: str) -> RunState:
    """``word``: Slurm's, or "" where it has forgotten the job."""
    last = last_word(signs.events, jobs)
    if last is None:
        if signs.is_finished:  # without Slurm, after it was submitted
            return RunState(name="finished")
        if word == "CANCELLED" or any(is_one_of(job, jobs) for job in signs.cancels):
            return RunState(name="cancelled", detail="before it began")
        if word in ("", "COMPLETED"):
            return RunState(name="lost", detail="it never began, and Slurm has forgotten it")
        return RunState(name="failed", detail=f"{ENDS.get(word, word)}, before it began")
    job = str(last["job"])
    if last["event"] == "start":
        return replace(_judge_wordless(signs, last, word), job=job)
    reason, action = str(last["reason"]), last["action"]
    if action == "done" or signs.is_finished:
        return RunState(name="finished", job=job)
    if action == "cancelled" or (action in _COMING_BACK and word == "CANCELLED"):
        return RunState(name="cancelled", detail=reason, job=job)
    name = "failed" if action == "stop" and last["code"] != 75 else "stopped"
    return RunState(name=name, detail=reason, job=job)


def _judge_wordless(signs: FolderSigns, start: Row, word: str) -> RunState:
    """Of an attempt that began and never said how it ended."""
    if signs.is_finished:
        return RunState(name="finished")
    if word == "CANCELLED" or str(start["job"]) in signs.cancels:
        return RunState(name="cancelled", detail="without saving")
    why = ENDS.get(word, word.lower()) if word != "COMPLETED" else ""
    return RunState(name="lost", detail=f"{why}; no end was written".removeprefix("; "))


def _judge_events(signs: FolderSigns, jobs: Sequence[str], now: float) -> RunState:
    """Where Slurm cannot be asked: what the batch scripts wrote, and the signs of life."""
    last = last_word(signs.events, jobs)
    if last is None:
        submitted = newest_submission(signs.submissions) or {}
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(submitted.get("time", now)))
        return RunState(name="queued", detail=f"submitted {when}, has not begun", job=jobs[0])
    job = str(last["job"])
    if last["event"] == "start":
        nodes = str(last["nodes"])
        if signs.hang is not None:
            return RunState(name="hung", detail=signs.hang, job=job, nodes=nodes)
        if (signs.attempt_began_at or 0.0) >= last["time"]:
            if not signs.has_open_attempt:
                return RunState(name="ending", detail=str(signs.end_reason), job=job, nodes=nodes)
            return replace(_judge_training(signs, now), job=job, nodes=nodes)
        silence = now - last["time"]
        detail = f"no step yet, {silence:,.0f} s in"
        return RunState(name="starting", detail=detail, job=job, nodes=nodes)
    if last["action"] in _COMING_BACK and not signs.is_finished:
        return RunState(name="queued", detail=f"requeued: {last['reason']}", job=job)
    return _judge_end(signs, jobs, "")
