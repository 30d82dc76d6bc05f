"""Slurm's commands, and their output as values. No other file of lmscale calls them.

Parsers are pure. A command that is missing, silent or refused is a ``ClusterError`` that says so.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lmscale.errors import ClusterError

TIMEOUT_SECONDS = 30.0
SBATCH_SECONDS = 120.0
# States in which a job will still do something by itself.
ACTIVE_STATES = frozenset(
    ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED")
    + ("REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT")
)
# How a command says that it found no controller, or no configuration that names one.
_UNREACHABLE = ("Unable to contact", "Connection refused", "Communication connection failure")
_UNREACHABLE += ("Could not establish a configuration source",)
# Defaults that a user may have set would change what is submitted or how it is printed.
_FOREIGN = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SLURM_")
_OURS = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
_RANK_VARIABLES += ("MASTER_ADDR", "MASTER_PORT", "LMSCALE_ATTEMPT", "LMSCALE_EXITS")


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job as squeue knows it: waiting, running, or ended a short while ago."""

    job: str  # as a person writes it: 12, or 12_3 for a task of an array, or 12_[4-7] for its rest
    raw_job: str  # SLURM_JOB_ID: every started task of an array has one of its own
    state: str
    reason: str  # why the job waits, or ""
    user: str
    nodes: str
    starts_at: float | None  # when it started, or when Slurm expects it to
    left_seconds: float | None

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE_STATES


_QUEUE_FIELDS = ("JobArrayID", "JobID", "State", "UserName", "NodeList", "StartTime", "TimeLeft")
_QUEUE_FIELDS += ("Reason",)


@dataclass(frozen=True, kw_only=True)
class AccountedJob:
    """One attempt of a job as the accounting remembers it."""

    job: str
    state: str
    submitted_at: float | None
    started_at: float | None
    ended_at: float | None
    nodes: str


_ACCOUNT_FIELDS = ("JobID", "State", "NodeList", "Submit", "Start", "End")


class SlurmRefusedError(ClusterError):
    """Slurm refused a request, for the reason that the message gives."""


def sbatch(script: Path) -> str:
    """Submit ``script`` and return the job's number. Raises ``ClusterError``."""
    completed = _call(["sbatch", "--parsable", str(script)], timeout=SBATCH_SECONDS)
    return parse_submitted(completed.stdout)


def try_sbatch(script: str) -> str:
    """The answer of ``sbatch --test-only`` to a batch script. Raises ``SlurmRefusedError``.

    Partition, nodes, gres, memory, time and signal are checked; account and qos are not.
    """
    completed = _call(["sbatch", "--test-only"], timeout=SBATCH_SECONDS, text=script)
    return _clean(completed.stderr or completed.stdout)


def list_partitions() -> tuple[str, ...]:
    """The partitions visible to this user; empty where Slurm cannot be asked."""
    try:
        return tuple(dict.fromkeys(_call(["sinfo", "--noheader", "--format=%R"]).stdout.split()))
    except ClusterError:
        return ()


def squeue(jobs: Sequence[str] = (), *, name: str | None = None) -> tuple[QueuedJob, ...]:
    """The queue's rows of these jobs, or of all jobs of a name; forgotten jobs have none."""
    if not jobs and name is None:
        return ()
    fields = ",".join(f"{name}:|" for name in _QUEUE_FIELDS)
    command = ["squeue", "--noheader", "--array", "--states=all", f"--Format={fields}"]
    command.append(f"--jobs={','.join(jobs)}" if jobs else f"--name={name}")
    # A single job that is forgotten is an error for squeue.
    return parse_queue(_ask(command, forgiven="Invalid job id"))


def sacct(jobs: Sequence[str]) -> tuple[AccountedJob, ...]:
    """Every attempt of these jobs, oldest first, some seconds late; none without accounting."""
    if not jobs:
        return ()
    command = ["sacct", "--noheader", "--allocations", "--parsable2", "--duplicates"]
    command += [f"--format={','.join(_ACCOUNT_FIELDS)}", f"--jobs={','.join(jobs)}"]
    return parse_accounting(_ask(command, forgiven="accounting storage is disabled"))


def _ask(command: Sequence[str], *, forgiven: str) -> str:
    """What the command prints; nothing where it refuses with the ``forgiven`` words."""
    try:
        return _call(command).stdout
    except SlurmRefusedError as refusal:
        if forgiven in str(refusal):
            return ""
        raise


def scancel(jobs: Sequence[str], options: Sequence[str] = ()) -> None:
    """End or signal (``options``) these jobs; a job that has ended already is no error.

    Slurm 22.05 refuses a signal for a batch script that has just ended, and with --quiet without a
    reason; its job may be completing.
    """
    if not jobs:
        return
    try:
        _call(["scancel", "--quiet", *options, *jobs])
    except SlurmRefusedError:
        if any(job.is_active and job.state != "COMPLETING" for job in squeue(jobs)):
            raise


def parse_submitted(printed: str) -> str:
    """``123`` or ``123;cluster`` → 123."""
    job = printed.strip().partition(";")[0]
    if not job.isdecimal():
        raise ClusterError(f"sbatch printed {printed.strip()!r} in place of a job's number.")
    return job


def parse_queue(printed: str) -> tuple[QueuedJob, ...]:
    return tuple(
        QueuedJob(
            job=job,
            raw_job=raw_job,
            state=state,
            reason="" if reason == "None" else reason,
            user=user,
            nodes=nodes,
            starts_at=parse_instant(starts),
            left_seconds=parse_duration(left),
        )
        for job, raw_job, state, user, nodes, starts, left, reason in _split(printed, _QUEUE_FIELDS)
    )


def parse_accounting(printed: str) -> tuple[AccountedJob, ...]:
    return tuple(
        AccountedJob(
            job=job,
            state=state.partition(" ")[0],  # "CANCELLED by 1000"
            submitted_at=parse_instant(submitted),
            started_at=parse_instant(started),
            ended_at=parse_instant(ended),
            nodes="" if nodes == "None assigned" else nodes,
        )
        for job, state, nodes, submitted, started, ended in _split(printed, _ACCOUNT_FIELDS)
    )


def _split(printed: str, fields: Sequence[str]) -> list[list[str]]:
    """The cells of each line of as many as there are fields; only the last may hold a ``|``."""
    last = len(fields) - 1
    rows = (line.removesuffix("|").split("|", last) for line in printed.splitlines())
    return [row for row in rows if len(row) == len(fields)]


def parse_duration(text: str) -> float | None:
    """Seconds of ``D-HH:MM:SS``, ``HH:MM:SS`` or ``MM:SS``; None for UNLIMITED and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def parse_instant(text: str) -> float | None:
    """Unix time of ``2026-11-22T01:28:48`` on this machine's clock; None for N/A or Unknown."""
    try:
        return datetime.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S").timestamp()
    except ValueError:
        return None


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without variables that would change a submission behind the script's back.

    SBATCH_PARTITION, say, outweighs the script's own line; a job that is submitted from inside
    another one would inherit its SLURM_* and rank variables.
    """
    harmless = {
        name: value
        for name, value in environ.items()
        if (name in _OURS or not name.startswith(_FOREIGN)) and name not in _RANK_VARIABLES
    }
    return {**harmless, "SLURM_TIME_FORMAT": "standard"}


def _call(
    command: Sequence[str], *, timeout: float = TIMEOUT_SECONDS, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands, with ``text`` on its standard input.

    Raises ``SlurmRefusedError`` for Slurm's no, and ``ClusterError`` where the command cannot be
    run, does not answer, or finds no Slurm to ask.
    """
    name = command[0]
    try:
        completed = subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
            env=clean_environment(os.environ),
        )
    except FileNotFoundError:
        raise ClusterError(
            f"{name}: there is no such command on this machine. Run this where Slurm's commands "
            "are, such as a login node of the cluster."
        ) from None
    except OSError as error:
        raise ClusterError(f"{name} cannot be run: {error}.") from None
    except subprocess.TimeoutExpired:
        advice = "`squeue --me` shows whether it was submitted all the same." * (name == "sbatch")
        raise ClusterError(
            f"{name} did not answer within {timeout:.0f} s: Slurm's controller is overloaded or "
            f"cannot be reached. Try again later. {advice}".rstrip()
        ) from None
    if completed.returncode:
        said = _clean(completed.stderr or completed.stdout)
        if any(phrase in said for phrase in _UNREACHABLE):
            raise ClusterError(f"{name} cannot reach Slurm's controller: {said}")
        raise SlurmRefusedError(f"{name} refused: {said or 'it gave no reason'}")
    return completed


def _clean(said: str) -> str:
    """A command's message on one line, without the command's name before each part."""
    lines = (re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in said.splitlines())
    return "; ".join(line.strip() for line in lines if line.strip())
