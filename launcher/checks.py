"""The checks before a job is submitted. All problems come in one message."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from launcher.data_checks import Findings, check_data
from launcher.job import DATA_KINDS, JobRequest, Prepared, SlurmJob
from launcher.planned import check_plan
from launcher.scoring import task_places
from launcher.slurm import QueuedJob, SlurmRefusedError, list_partitions, squeue, try_sbatch
from launcher.sweep import find_conflict
from lmscale.config import RunConfig
from lmscale.errors import LmscaleError
from lmscale.files.locations import is_remote, local_path
from lmscale.files.printing import count_of
from lmscale.files.run_files import read_submissions
from lmscale.runs.beginnings import find_source_problems, find_teacher_problems
from lmscale.runs.continuation import check_folder, find_continuation_problems
from lmscale.runs.own_ids import find_forgotten_ids

EXCLUSIVE = ("train", *DATA_KINDS)  # two at once in a folder would be in each other's way
# Of the #SBATCH lines: what Slurm chooses nodes by and refuses a job for.
_ASKED = ("partition", "account", "qos", "constraint", "reservation", "array", "nodes", "mincpus")
_ASKED += ("ntasks-per-node", "cpus-per-task", "gres", "mem", "exclusive", "exclude", "time")
MAX_KNOWN_ROWS = 50  # the newest submissions: Slurm itself forgets the jobs of old ones


def check(prepared: Prepared, *, besides: Collection[str] = ()) -> Findings:
    """Run every check before a submission, without writing. ``besides``: copies that will end."""
    request, job = prepared.request, prepared.job
    findings = Findings(warnings=list(prepared.warnings))
    findings.passed += _describe_plan(job)
    findings.take(_folder_problems(request, job), f"{job.run_folder} can be its folder")
    check_data(request, job, findings)
    _check_places(request, job, findings)
    check_plan(request, job, findings)
    try:
        live = find_live_jobs(job, besides=besides)
        findings.take(live, "no copy of it is queued or running")
        if not live or job.kind not in EXCLUSIVE:
            findings.passed.append(f"Slurm would take it: {try_sbatch(prepared.script)}")
    except SlurmRefusedError as refusal:
        findings.problems.append(_explain_refusal(refusal, request, job))
    except LmscaleError as error:
        findings.problems += error.problems
    return findings


def _explain_refusal(refusal: SlurmRefusedError, request: JobRequest, job: SlurmJob) -> str:
    """What ``sbatch --test-only`` refused the job for, with what was asked for."""
    profile = request.cluster_file or request.cluster_name
    asked = [option for option in job.directives if option[2:].partition("=")[0] in _ASKED]
    problem = f"{str(refusal).rstrip('.')}. By the profile {profile} it was asked for "
    problem += f"{' '.join(asked)}."
    if "partition" in str(refusal).lower() and (partitions := list_partitions()):
        problem += f" Partitions here: {', '.join(partitions)}."
    return problem


def _describe_plan(job: SlurmJob) -> list[str]:
    if job.kind != "train":
        return list(filter(None, [describe_rest(job)]))
    ranks = [str(count * job.tasks_per_node) for count in job.usable_nodes]
    runs = f", in each of {len(job.members)} runs" if job.members else ""
    noun = "rank" if ranks == ["1"] else "ranks"
    return [f"a step divides among {_join(ranks)} {noun}{runs}"]


def describe_rest(job: SlurmJob) -> str:
    """How many tasks of a data job have work left; "" where it is all."""
    count = len(job.only)
    if not job.tasks or not 0 < count < job.tasks:
        return ""
    return f"{count} of {job.tasks} tasks {'has' if count == 1 else 'have'} work"


def describe_unusable_nodes(request: JobRequest, job: SlurmJob) -> list[str]:
    """Which numbers of nodes in --nodes MIN-MAX the run could not use, and what follows."""
    low, high = job.min_nodes, job.max_nodes
    asked = range(request.min_nodes, request.max_nodes + 1)
    unusable = [count for count in asked if count not in job.usable_nodes]
    if job.kind != "train" or not unusable:
        return []
    inside = [count for count in unusable if low < count < high]
    idle = ""
    if inside:
        idle = f" On {_join(inside)} nodes it uses the next smaller number; the rest stay idle."
    ranks = count_of(job.tasks_per_node, "rank")
    sizes = sorted({size for config in request.runs for size in config.batch.step_sizes})
    windows = " and ".join(f"{size:,}" for size in sizes)
    return [
        f"--nodes {request.min_nodes}-{request.max_nodes}: {windows} windows a step cannot be "
        f"shared evenly by {ranks} on each of {_join(unusable)} nodes. "
        f"The job asks for {low if low == high else f'{low} to {high}'} nodes.{idle}"
    ]


def _join(parts: Sequence[object], last: str = "or") -> str:
    words = list(map(str, parts))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _folder_problems(request: JobRequest, job: SlurmJob) -> list[str]:
    if job.kind in DATA_KINDS:
        return []
    problems = []
    for config in request.runs:
        try:
            check_folder(config.folder, config)
            if job.kind == "train":
                problems += find_continuation_problems(config)
                problems += find_source_problems(config)
                problems += find_forgotten_ids(config)
                problems += find_teacher_problems(config)
        except LmscaleError as error:
            problems += error.problems
    conflict = find_conflict(request.sweep) if request.sweep else None
    return [*problems, conflict] if conflict else problems


def _check_places(request: JobRequest, job: SlurmJob, findings: Findings) -> None:
    """Whether all nodes see the places that the job reads and writes."""
    if not request.cluster.shared:
        findings.warnings.append(
            f"The profile {request.cluster_name} names no shared folders: whether all nodes see "
            f"{job.run_folder} and the shards was not checked."
        )
        return
    folders, shared = request.cluster.shared, ", ".join(request.cluster.shared)
    wanted = [p for config in request.runs for p in places_of(config, job, request.folder)]
    findings.take(
        [
            f"{place} is not below a folder that all nodes see ({shared}, by the profile "
            f"{request.cluster_name}). Move it there, or add its place to the profile's `shared`."
            for place in dict.fromkeys(wanted)
            if not is_remote(place) and not is_below(place, folders)
        ],
        f"all its places are below {shared}",
    )
    if request.cluster.container.kind != "none" or not job.python.startswith("/"):
        return
    if not is_below(job.python, folders):
        findings.warnings.append(
            f"{job.python} is not below {shared}: every node needs that interpreter, with the "
            "same packages, at the same place. Or name another by the profile's `python`."
        )
    elif not os.access(job.python, os.X_OK):
        findings.problems.append(
            f"{job.python}: there is no interpreter here that can be run, though all nodes see "
            f"what is below {shared}. Correct the profile's `python` ({request.cluster_file})."
        )


def places_of(config: RunConfig, job: SlurmJob, launched_in: Path) -> list[str]:
    """The folders that the nodes must see."""
    if job.kind == "corpus":
        return [config.corpus.folder, str(launched_in)]
    if job.kind == "tokenizer":
        return [config.corpus.folder, config.tokenizer.folder]
    if job.kind == "shards":
        return [config.corpus.folder, config.tokenizer.folder, config.shards.folder]
    places = [str(config.folder)]
    if job.kind in ("train", "evaluate"):
        places += [config.tokenizer.folder, *config.evaluation.sets.values()]
        places += task_places(config.evaluation)
    if job.kind == "train":
        places += [source.shards for source in config.stream.sources.values()]
    return places


def is_below(place: str, folders: Sequence[str]) -> bool:
    """Whether a place lies below one of the folders, by its name or behind symbolic links."""
    paths = (local_path(place), Path(os.path.realpath(place)))
    roots = [root for folder in folders for root in (Path(folder), Path(os.path.realpath(folder)))]
    return any(path.is_relative_to(root) for path in paths for root in roots)


def live_jobs(job: SlurmJob) -> dict[str, QueuedJob]:
    """Copies of a job that are queued or running, by their numbers."""
    return {queued.job: queued for queued in known_jobs(job) if queued.is_active}


def known_jobs(job: SlurmJob) -> tuple[QueuedJob, ...]:
    """Copies of a job that Slurm knows, those that ended a short while ago as well."""
    if job.kind not in EXCLUSIVE:
        return ()
    rows = [row for row in read_submissions(job.state_folder) if row["kind"] == job.kind]
    numbers = [str(number) for row in rows[-MAX_KNOWN_ROWS:] for number in row["jobs"]]
    # By name as well: a submission may have been cut off before it was written down.
    return (*squeue(tuple(dict.fromkeys(numbers))), *squeue(name=job.name))


def find_live_jobs(job: SlurmJob, *, besides: Collection[str] = ()) -> list[str]:
    """Why another copy must not be submitted now: one is queued or running."""
    live = {number: copy for number, copy in live_jobs(job).items() if number not in besides}
    if not live:
        return []
    names = [*list(live)[:3], *([f"{len(live) - 3} more"] if len(live) > 3 else [])]
    states = sorted({queued.state.lower() for queued in live.values()})
    users = sorted({queued.user for queued in live.values()})
    what = "run" if job.kind == "train" else job.kind
    return [
        f"{'jobs' if len(live) > 1 else 'job'} {_join(names, 'and')} of this {what} "
        f"{'are' if len(live) > 1 else 'is'} {_join(states, 'or')} (submitted by "
        f"{_join(users, 'and')}). Two copies would undo each other's work: wait, or end it with "
        f"`{cancel_command(job, *live)}`."
    ]


def cancel_command(job: SlurmJob, *jobs: str) -> str:
    """The command with which a person ends these jobs for good."""
    folder = shlex.quote(str(job.run_folder))
    if job.kind != "train":
        return f"scancel {' '.join(jobs)}"
    if job.members:
        parent = shlex.quote(str(job.run_folder.parent))
        return f"lmscale runs cancel {parent} --sweep {shlex.quote(job.run_folder.name)}"
    return f"lmscale runs cancel {folder}"
