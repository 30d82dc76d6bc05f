"""How a run goes: what its folder says and what Slurm says, put together. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from launcher.slurm import AccountedJob, QueuedJob
from launcher.upstream import describe_upstream
from lmscale.files.run_files import ALIVE_SECONDS
from lmscale.runs.starts import RunSigns, Start, is_one_of, newest_of

Row = Mapping[str, Any]
StateName = Literal[
    "not started",
    "imported",  # weights of another program's, which runs begin with
    "weights alone",  # made of another run's, which runs begin with
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
NOT_BEGUN = "before it began"
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
class SlurmAnswer:
    """What Slurm said about the jobs of one or more runs."""

    queue: Sequence[QueuedJob] = ()
    accounts: Sequence[AccountedJob] = ()


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One word, and one line that says the rest."""

    name: StateName
    detail: str = ""
    job: str | None = None
    nodes: str = ""
    reason: str = ""  # Slurm's own word for why it waits
    starts_at: float | None = None  # when Slurm expects a waiting job to start
    left_seconds: float | None = None  # of the running job's time limit
    source: Literal["folder", "squeue", "sacct"] = "folder"

    @property
    def line(self) -> str:
        rest = self.detail
        if word := re.match(rf"{self.name}\b[,:;]?\s*", rest):  # a reason may begin with the word
            rest = rest[word.end() :]
        return f"{self.name}: {rest}" if rest else self.name

    @property
    def is_active(self) -> bool:
        """Whether it goes on by itself."""
        names = ("queued", "held", "starting", "running", "hung", "silent", "suspended", "ending")
        return self.name in names


def judge_run(signs: RunSigns, answer: SlurmAnswer | None, now: float) -> RunState:
    """The state of a run; ``answer`` None means that Slurm was not asked."""
    submission = newest_submission(signs.submissions)
    if submission is None or _is_local(signs):
        return _judge_folder(signs, now)
    jobs = jobs_of(submission)
    if answer is None:
        return _judge_events(signs, jobs, now)
    queued = [job for job in answer.queue if is_one_of(job.job, jobs)]
    active = sorted((job for job in queued if job.is_active), key=_order)
    if active:
        return _with_upstream(_judge_active(signs, active[0], now), submission, answer)
    since = submission["time"] - 300  # before it the accounting may have been begun anew
    accounts = [a for a in answer.accounts if is_one_of(a.job, jobs)]
    ends = [a for a in accounts if a.submitted_at is None or a.submitted_at > since]
    state = _judge_gone(signs, jobs, queued, ends)
    return state if state.job in signs.cancels else _with_upstream(state, submission, answer)


def _with_upstream(state: RunState, submission: Row, answer: SlurmAnswer) -> RunState:
    """With what a run of a pipeline waits for, or why it will never begin."""
    pipeline = submission.get("pipeline", ())
    waits = state.name == "queued" and state.reason.startswith("Dependency")
    if not pipeline or not (waits or state.detail == NOT_BEGUN):
        return state
    words, can_come = describe_upstream(pipeline, answer.queue, answer.accounts)
    if not can_come:
        again = "Mend that and give the same command again"
        return replace(state, detail=f"it will never begin, for {words}. {again}")
    return replace(state, detail=f"waits for {words}") if waits and words else state


def newest_submission(submissions: Sequence[Row]) -> Row | None:
    """The last one that trains."""
    return next((row for row in reversed(submissions) if row["kind"] == TRAIN), None)


def jobs_of(submission: Row) -> tuple[str, ...]:
    """Its job, or all jobs of its chain."""
    return tuple(submission["jobs"])


def _is_local(signs: RunSigns) -> bool:
    """Whether the newest start was made without Slurm, in a folder that had jobs before."""
    newest = signs.starts[-1] if signs.starts else None
    if newest is None or newest.job is not None:
        return False
    submitted_at = max((row["time"] for row in signs.submissions), default=0.0)
    has_jobs = any(start.job is not None for start in signs.starts)
    is_training = bool(newest.attempt) and newest.attempt_end is None
    return newest.began_at > submitted_at and (has_jobs or is_training)


def _order(job: QueuedJob) -> tuple[int, int]:
    """A running job before one that waits, a chain's next one before those after it."""
    return (job.state == "PENDING", int(re.sub(r"\D.*", "", job.raw_job) or 0))


def _judge_folder(signs: RunSigns, now: float) -> RunState:
    """Of a run that Slurm does not know."""
    if signs.imported_from is not None:
        return RunState(name="imported", detail=signs.imported_from)
    if signs.made_of is not None:
        return RunState(name="weights alone", detail=signs.made_of)
    if not signs.starts:
        return RunState(name="not started")
    reason = signs.starts[-1].attempt_end
    if reason is None and signs.is_gone and signs.starts[-1].attempt:
        # Nobody is left to write an end: by a kill, or for want of memory.
        return RunState(name="lost", detail=f"killed: {_describe_rank0(signs)} is gone")
    if reason is None:
        state = _judge_start(signs, signs.starts[-1], now)
        return state if signs.is_gone is False else _by_its_age(signs, state, now)
    if signs.is_finished:
        return RunState(name="finished", detail=signs.early_stop)
    return RunState(name="stopped" if reason in _STOP_REASONS else "failed", detail=reason)


def _describe_rank0(signs: RunSigns) -> str:
    start = signs.starts[-1].attempt[0]
    return f"process {start['process']['pid']} on {start['host']}, its rank 0,"


def _by_its_age(signs: RunSigns, state: RunState, now: float) -> RunState:
    """Of a run whose processes cannot be looked at from here: what its state rests on."""
    start = signs.starts[-1]
    if start.job is not None or signs.last_sign is None:
        return state
    age = max(0.0, now - signs.last_sign)
    if state.name == "running":
        return replace(state, detail=f"last sign {age:,.0f} s ago, from {start.nodes}")
    if state.name == "silent":
        return replace(state, detail=f"{state.detail}; {start.nodes} cannot be looked at from here")
    return state


def _judge_active(signs: RunSigns, job: QueuedJob, now: float) -> RunState:
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


def _judge_job(signs: RunSigns, job: QueuedJob, now: float) -> RunState:
    if job.state == "PENDING":
        name = "held" if job.reason in _HELD else "queued"
        return RunState(name=name, detail=describe_wait(job, now))
    if job.state == "COMPLETING":
        return RunState(name="ending", detail="its nodes are being cleared")
    if job.state != "RUNNING":  # CONFIGURING, SUSPENDED, REQUEUE_HOLD, …
        name = _JOB_STATES.get(job.state, "starting")
        return RunState(name=name, detail=job.state.lower())
    if not signs.cancels.isdisjoint((job.job, job.raw_job)):
        return RunState(name="ending", detail="asked to save and to end for good")
    start = newest_of(signs.starts, [job.job])
    if start is None or start.began_at < (job.starts_at or 0.0) - 5:
        return RunState(name="starting", detail="its batch script has not begun")
    return _judge_start(signs, start, now)


def _judge_start(signs: RunSigns, start: Start, now: float) -> RunState:
    """Of a start that has written no end."""
    if signs.hang is not None:
        return RunState(name="hung", detail=signs.hang)
    if not start.attempt and newest_submission(signs.submissions):  # else it may be of any age
        return RunState(name="starting", detail=f"no step yet, {now - start.began_at:,.0f} s in")
    if start.attempt_end is not None:
        return RunState(name="ending", detail=start.attempt_end)
    silence = now - signs.last_sign if signs.last_sign is not None else 0.0
    if silence >= ALIVE_SECONDS:
        return RunState(name="silent", detail=f"for {silence:,.0f} s")
    return RunState(name="running")


def describe_wait(job: QueuedJob, now: float) -> str:
    """Why a job waits, in words and in Slurm's own."""
    prefixes = (words for start, words in _WAITS_BY_PREFIX.items() if job.reason.startswith(start))
    words = _WAITS.get(job.reason) or next(prefixes, "")
    if job.reason == "BeginTime" and job.starts_at is not None and job.starts_at > now:
        words = f"may begin in {job.starts_at - now:,.0f} s"
    if not job.reason:
        return "Slurm has not looked at it yet"
    reason = job.reason.partition("(")[0].strip()
    return f"{words.format(job=job.job)} ({reason})" if words else reason


def _judge_gone(
    signs: RunSigns, jobs: Sequence[str], queued: Sequence[QueuedJob], ends: Sequence[AccountedJob]
) -> RunState:
    """Of jobs that have ended: by Slurm's last word on them, and the batch script's."""
    newest = max(ends, key=lambda end: (end.ended_at or 0, end.job), default=None)
    if newest is not None and newest.state not in ("PENDING", "RUNNING"):
        word, nodes, source = newest.state, newest.nodes, "sacct"
    elif queued:  # without accounting Slurm remembers a job for some minutes
        last = max(queued, key=lambda job: (job.starts_at or 0, job.job))
        word, nodes, source = last.state, last.nodes, "squeue"
    else:
        word, nodes, source = "", "", "folder"
    state = _judge_end(signs, jobs, word)
    return replace(state, job=state.job or jobs[-1], nodes=nodes, source=source)


def _judge_end(signs: RunSigns, jobs: Sequence[str], word: str) -> RunState:
    """``word``: Slurm's, or "" where it has forgotten the job."""
    start = newest_of(signs.starts, jobs)
    job = start.job if start else None
    end = start.script_end if start else None
    if signs.is_finished or (end and end.action == "done"):
        return RunState(name="finished", detail=signs.early_stop, job=job)
    if start is None:
        if word == "CANCELLED" or any(is_one_of(job, jobs) for job in signs.cancels):
            return RunState(name="cancelled", detail=NOT_BEGUN)
        if word in ("", "COMPLETED"):
            return RunState(name="lost", detail="it never began, and Slurm has forgotten it")
        return RunState(name="failed", detail=f"{ENDS.get(word, word)}, before it began")
    if end is None:
        if word == "CANCELLED" or job in signs.cancels:
            return RunState(name="cancelled", detail="without saving", job=job)
        why = ENDS.get(word, word.lower()) if word != "COMPLETED" else ""
        detail = f"{why}; no end was written".removeprefix("; ")
        return RunState(name="lost", detail=detail, job=job)
    if end.action == "cancelled" or (end.action in _COMING_BACK and word == "CANCELLED"):
        return RunState(name="cancelled", detail=end.reason, job=job)
    name = "failed" if end.action == "stop" and end.code != 75 else "stopped"
    return RunState(name=name, detail=end.reason, job=job)


def _judge_events(signs: RunSigns, jobs: Sequence[str], now: float) -> RunState:
    """Where Slurm cannot be asked: what the batch scripts wrote, and the signs of life."""
    start = newest_of(signs.starts, jobs)
    if start is None:
        submitted = newest_submission(signs.submissions) or {}
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(submitted.get("time", now)))
        return RunState(name="queued", detail=f"submitted {when}, has not begun", job=jobs[0])
    end = start.script_end
    if end is None:
        return replace(_judge_start(signs, start, now), job=start.job, nodes=start.nodes)
    if end.action in _COMING_BACK and not signs.is_finished:
        return RunState(name="queued", detail=f"requeued: {end.reason}", job=start.job)
    return _judge_end(signs, jobs, "")
