"""Slurm's refusal of a script, with what the reader needs to mend it: what was asked, and where."""

from __future__ import annotations

from launcher.job import JobRequest, SlurmJob
from launcher.slurm import SlurmRefusedError, list_partitions

# Of the #SBATCH lines: what Slurm refuses a job for.
_ASKED = ("partition", "account", "qos", "constraint", "reservation", "array", "nodes", "mincpus")
_ASKED += ("ntasks-per-node", "cpus-per-task", "gres", "mem", "exclusive", "exclude", "time")


def explain_refusal(refusal: SlurmRefusedError, request: JobRequest, job: SlurmJob) -> list[str]:
    """What ``sbatch --test-only`` refused the job for, with what was asked for."""
    profile = request.cluster_file or request.cluster_name
    problem = f"{refusal.problems[0].rstrip('.')}. By the profile {profile} it was asked for "
    problem += f"{' '.join(describe_asked(job))}."
    if "partition" in refusal.answer.lower():
        partitions = list_partitions()
        problem += f" Partitions here: {', '.join(partitions)}." if partitions else ""
    return [problem, *refusal.problems[1:]]


def describe_asked(job: SlurmJob) -> list[str]:
    """The directives that Slurm chooses nodes by, as they stand in the script."""
    return [option for option in job.directives if option[2:].partition("=")[0] in _ASKED]
