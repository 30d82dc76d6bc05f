"""The start of a run that this process belongs to: job, restart, submission, node."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from lmscale.errors import ConfigError

LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A start of a run: a Slurm job with its number of restarts, or a local start."""

    job: str | None = None
    restart: int = 0
    submission: str | None = None  # of all jobs of a chain, which train one after the other

    @property
    def name(self) -> str:
        return LOCAL if self.job is None else f"{self.job}.{self.restart}"

    def is_newer_than(self, other: Attempt) -> bool:
        """Whether both starts belong to one submission and this start is the later."""
        if self.job is None or other.job is None:
            return False
        is_kin = self.submission is not None and self.submission == other.submission
        return (is_kin or self.job == other.job) and self._order > other._order

    @property
    def _order(self) -> tuple[int, int]:
        """Slurm counts jobs up, and the jobs of a chain run in that order."""
        number = re.match(r"\d+", self.job or "")
        return (int(number[0]) if number else 0, self.restart)


def attempt_from_environment(environ: Mapping[str, str] | None = None) -> Attempt:
    """The attempt that the batch script names in ``LMSCALE_ATTEMPT``, of ``LMSCALE_SUBMISSION``.

    Without ``LMSCALE_ATTEMPT`` it is a local start.
    """
    environ = os.environ if environ is None else environ
    name = environ.get("LMSCALE_ATTEMPT", LOCAL)
    if name == LOCAL:
        return Attempt()
    match = re.fullmatch(r"([\w+-]+)\.(\d+)", name)
    if match is None:
        raise ConfigError(f"LMSCALE_ATTEMPT = {name!r} is not JOB.RESTART, such as 4711.0.")
    submission = environ.get("LMSCALE_SUBMISSION") or None
    return Attempt(job=match[1], restart=int(match[2]), submission=submission)


def job_and_restart() -> tuple[str | None, int]:
    """The job as Slurm's commands show it, 12 or 12_3 of an array; None and 0 without Slurm."""
    attempt, job = attempt_from_environment(), os.environ.get("SLURM_ARRAY_JOB_ID")
    if attempt.job is None or job is None:
        return attempt.job, attempt.restart
    return f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}", attempt.restart


def node_name() -> str:
    """Slurm's name of this node, which the host's need not be."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
