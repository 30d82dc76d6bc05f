"""The checks before a job is submitted. All problems come in one message."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.job import JobRequest, Prepared, SlurmJob
from launcher.scoring import find_scoring_problems, scores_sets, task_places
from launcher.slurm import SlurmRefusedError, list_partitions, squeue, try_sbatch
from launcher.sweep import find_conflict
from lmscale.config import RunConfig, load_config
from lmscale.config.labels import find_not_carried, parse_carried
from lmscale.errors import DataError, LmscaleError
from lmscale.files.locations import is_remote, local_path, match_files
from lmscale.files.printing import count_of
from lmscale.files.reading import read_plain
from lmscale.files.run_files import CONFIG_FILE, read_submissions
from lmscale.files.shard_files import (
    MANIFEST,
    explain_missing,
    find_mixed_datasets,
    find_wrong_files,
    read_shard_sizes,
)
from lmscale.files.strangers import parse_json
from lmscale.files.tokenizer_files import has_tokenizer
from lmscale.runs.commits import read_commits
from lmscale.runs.continuation import (
    check_folder,
    find_continuation_problems,
    find_source_problems,
    find_teacher_problems,
)
from lmscale.runs.own_ids import find_forgotten_ids

EXCLUSIVE = ("train", "corpus", "shards")  # two at once in a folder would be in each other's way
# Of the #SBATCH lines: what Slurm chooses nodes by and refuses a job for.
_ASKED = ("partition", "account", "qos", "constraint", "reservation", "array", "nodes", "mincpus")
_ASKED += ("ntasks-per-node", "cpus-per-task", "gres", "mem", "exclusive", "exclude", "time")
MAX_SHARDS = 100_000  # a look at each; on a slow file system some minutes
MAX_NAMED = 3  # wrong shards of a dataset
MAX_KNOWN_ROWS = 50  # the newest submissions: Slurm itself forgets the jobs of old ones


@dataclass
class Findings:
    """What the checks found, in the order in which they were made."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def take(self, problems: Iterable[str], otherwise: str) -> None:
        """Add ``problems``; without any, ``otherwise`` is passed."""
        before = len(self.problems)
        self.problems += problems
        self.passed += [otherwise] if len(self.problems) == before else []


def check(prepared: Prepared) -> Findings:
    """Run every check before a submission, without writing."""
    request, job = prepared.request, prepared.job
    findings = Findings(warnings=list(prepared.warnings))
    findings.passed += _describe_plan(job)
    findings.take(_folder_problems(request, job), f"{job.run_folder} can be its folder")
    _check_data(request, job, findings)
    _check_places(request, job, findings)
    try:
        live = find_live_jobs(job)
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


def _check_data(request: JobRequest, job: SlurmJob, findings: Findings) -> None:
    if job.kind == "preflight":
        return
    problems = [p for config in request.runs for p in _data_problems(config, job)]
    passed = "its inputs exist" if job.kind == "corpus" else "the manifests of what it reads exist"
    if job.kind == "train":
        places = dict.fromkeys(place for c in request.runs for place in _datasets_of(c).values())
        shard_problems, is_complete = find_shard_problems(places)
        problems += shard_problems
        passed = "what it reads exists, with all its shards" if is_complete else passed
    findings.take(dict.fromkeys(problems), passed)


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
    if job.kind in ("corpus", "shards"):
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


def _data_problems(config: RunConfig, job: SlurmJob) -> list[str]:
    """Files that the job would miss on its first second; remote ones are left to the job."""
    if job.kind == "corpus":
        return _input_problems(config)
    if job.kind == "evaluate":
        return _evaluation_problems(config, job)
    problems = []
    folder = Path(config.tokenizer.folder)
    if not has_tokenizer(folder):
        problems.append(
            f"{folder}: there is no tokenizer here. Run `lmscale tokenizer train CONFIG` first, or "
            "set tokenizer.folder."
        )
    if job.kind == "shards":
        corpus = config.corpus
        places = {f"corpus.sources.{name}": f"{corpus.folder}/{name}" for name in corpus.sources}
        return problems + _missing_manifests(places, _build_corpus)
    if not config.stream.sources:
        problems.append("stream.sources names no dataset; give at least one, NAME: {shards: …}.")
    datasets = _datasets_of(config)
    at_hand = {setting: place for setting, place in datasets.items() if not is_remote(place)}
    problems += _missing_manifests(datasets) + find_mixed_datasets(at_hand)
    return problems + _carrying_problems(config, at_hand)


def _carrying_problems(config: RunConfig, places: Mapping[str, str]) -> list[str]:
    """Datasets without the pairs or labels that the objective reads. One whose manifest cannot be
    read is passed over.
    """
    problems: list[str] = []
    for setting, place in places.items():
        try:
            carried = parse_carried(parse_json(read_plain(local_path(place) / MANIFEST)))
        except (OSError, ValueError):
            continue
        problems += find_not_carried(carried, config.window, where=f"{setting}: {place}")
    return problems


def _datasets_of(config: RunConfig) -> dict[str, str]:
    """Setting → place of every dataset that a training reads."""
    sources = {
        f"stream.sources.{name}": source.shards
        for name, source in config.stream.sources.items()
        if source.weight > 0
    }
    return sources | _sets_of(config)


def _sets_of(config: RunConfig) -> dict[str, str]:
    return {f"evaluation.sets.{name}": place for name, place in config.evaluation.sets.items()}


def find_shard_problems(places: Iterable[str]) -> tuple[list[str], bool]:
    """A line for each dataset that is not whole, and whether every shard was looked at."""
    problems: list[str] = []
    left = MAX_SHARDS
    is_complete = True
    for place in places:
        sizes: dict[str, int] = {}
        try:
            sizes = {} if is_remote(place) else read_shard_sizes(place)
        except (FileNotFoundError, NotADirectoryError):
            pass  # ``_missing_manifests`` says so
        except (OSError, DataError) as error:
            problems.append(str(error))
            continue
        if not sizes or len(sizes) > left:
            is_complete = False
            continue
        left -= len(sizes)
        if wrong := find_wrong_files(place, sizes):
            named = ", ".join(map(str, wrong[:MAX_NAMED]))
            more = f" and {len(wrong) - MAX_NAMED:,} more" if len(wrong) > MAX_NAMED else ""
            problems.append(
                f"{local_path(place)}: {len(wrong):,} of {len(sizes):,} shards are not as "
                f"{MANIFEST} says: {named}{more}. Copy them again, or build them with "
                "`lmscale shards build CONFIG`."
            )
    return problems, is_complete


def _evaluation_problems(config: RunConfig, job: SlurmJob) -> list[str]:
    """The sets are those of the run's own configuration, the tasks those of what is launched."""
    folder = config.folder
    steps = sorted({commit.step for commit in read_commits(folder)})
    problems = find_scoring_problems(config, step=job.step, steps=steps, after=job.after)
    if problems or not ((folder / CONFIG_FILE).is_file() or job.after is None):
        return problems
    try:
        own = load_config(folder / CONFIG_FILE)
    except LmscaleError as error:
        return list(error.problems)
    if not scores_sets(config.evaluation):
        return []
    sets = _sets_of(own)
    if not sets:
        return [f"{folder / CONFIG_FILE} names no evaluation.sets: there is nothing to score."]
    return _missing_manifests(sets)


def _input_problems(config: RunConfig) -> list[str]:
    if not config.corpus.sources:
        return ["corpus.sources names no source; give at least one with its inputs."]
    return [
        f"corpus.sources.{name}.inputs: no file matches {pattern} (looked from {os.getcwd()})."
        for name, source in config.corpus.sources.items()
        for pattern in (each.files for each in source.inputs)
        if not match_files(pattern)
    ]


def _build_corpus(place: str) -> str:
    return "Build it with `lmscale corpus build CONFIG`, or name another place."


def _missing_manifests(
    places: dict[str, str], explain: Callable[[str], str] = explain_missing
) -> list[str]:
    return [
        f"{setting}: {place} holds no {MANIFEST}. {explain(place)}"
        for setting, place in places.items()
        if not is_remote(place) and not (local_path(place) / MANIFEST).is_file()
    ]


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


def find_live_jobs(job: SlurmJob) -> list[str]:
    """Why another copy must not be submitted now: one is queued or running."""
    if job.kind not in EXCLUSIVE:
        return []
    rows = [row for row in read_submissions(job.state_folder) if row["kind"] == job.kind]
    numbers = [str(number) for row in rows[-MAX_KNOWN_ROWS:] for number in row["jobs"]]
    # By name as well: a submission may have been cut off before it was written down.
    queue = (*squeue(tuple(dict.fromkeys(numbers))), *squeue(name=job.name))
    live = {queued.job: queued for queued in queue if queued.is_active}
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
