"""What is asked for → what a Slurm job is: every field absolute and final. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

from launcher.directives import apptainer_prefix, plan_directives, pyxis_options
from launcher.job import JobKind, JobRequest, Member, SlurmJob, SweepPlan
from lmscale.config import RunConfig, plan_batches
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.errors import ConfigError
from lmscale.files.run_files import DATA_SLURM_FOLDER, SLURM_FOLDER
from lmscale.runs.code_state import FROZEN_CODE
from lmscale.runs.ownership import CONFIG_FILE


def plan_nodes(
    config: RunConfig, *, ranks_per_node: int, min_nodes: int, max_nodes: int
) -> tuple[int, ...]:
    """The numbers of nodes in a range that can train a configuration.

    Raises ``ConfigError`` when no number of nodes in the range will do.
    """
    _check_range(min_nodes, max_nodes)
    windows = config.batch.global_windows
    counts = range(min_nodes, max_nodes + 1)
    ranks = count_of(ranks_per_node, "rank")
    usable = tuple(count for count in counts if windows % (count * ranks_per_node) == 0)
    if not usable and min_nodes == max_nodes:
        try:
            plan_batches(
                global_windows=windows,
                micro_windows=config.batch.micro_windows,
                data_ranks=min_nodes * ranks_per_node,
            )
        except ConfigError as error:
            fits = [n for n in range(1, windows + 1) if windows % (n * ranks_per_node) == 0]
            near = sorted(sorted(fits, key=lambda n: abs(n - min_nodes))[:4])
            advice = (
                f"With {ranks} a node that is --nodes {' or '.join(map(str, near))}."
                if near
                else f"No number of nodes with {ranks} each will do."
            )
            raise ConfigError(f"{error} {advice}") from None
    if not usable:
        raise ConfigError(
            f"--nodes {min_nodes}-{max_nodes}: no number of nodes in this range, with "
            f"{ranks} each, shares batch.global_windows = {windows} evenly."
        )
    return usable


def _check_range(min_nodes: int, max_nodes: int) -> None:
    if not 1 <= min_nodes <= max_nodes:
        raise ConfigError(f"--nodes {min_nodes}-{max_nodes}: give N, or MIN-MAX from 1 on.")


def plan_folder(kind: JobKind, config: RunConfig, sweep: SweepPlan | None = None) -> Path:
    """The folder that a job works for: a run's, a sweep's, or that of the data it builds."""
    if kind == "corpus":
        return Path(config.corpus.folder)
    if kind == "shards":
        return Path(config.shards.folder)
    return sweep.root if sweep else config.folder


def plan_state_folder(kind: JobKind, folder: Path) -> Path:
    """Where a job keeps its frozen copies, its events and its output."""
    return folder / (DATA_SLURM_FOLDER if kind in ("corpus", "shards") else SLURM_FOLDER)


def plan_train_job(request: JobRequest) -> SlurmJob:
    """A run, or with ``request.sweep`` an array of runs, in as many attempts as it takes."""
    cluster, sweep = request.cluster, request.sweep
    if sweep and cluster.chain > 1:
        raise ConfigError(
            f"--array: a sweep cannot be a chain of {cluster.chain} jobs, whose tasks would wait "
            "for each other's runs. Add --chain 1, with a time limit that each run can finish in; "
            "the same command again goes on with runs that did not. Or use a profile that requeues."
        )
    configs = [config for _, config in sweep.members] if sweep else [request.config]
    nodes = _common_nodes(request, configs)
    folder = plan_folder("train", request.config, sweep)
    frozen = plan_state_folder("train", folder) / request.submission
    members = tuple(
        Member(
            index=index,
            name=config.run.name,
            run_folder=config.folder,
            config=frozen / "configs" / f"{index:03d}.yaml",
        )
        for index, config in enumerate(configs if sweep else ())
    )
    title = (
        f"{_name_of(request)}: training on the cluster {request.cluster_name}, written by lmscale.",
        _describe_nodes(nodes, cluster),
        *((f"A sweep of {len(members)} runs in {folder}.",) if members else ()),
    )
    command = ("-m", "launcher.rank")
    return _plan(request, "train", title, command=command, nodes=nodes, members=members)


def plan_evaluate_job(request: JobRequest) -> SlurmJob:
    """One rank that scores the run's newest checkpoint."""
    title = (
        f"{_name_of(request)}: evaluation on the cluster {request.cluster_name}, "
        "written by lmscale.",
    )
    command = ("-m", "lmscale.cli.main", "evaluate", str(request.config.folder))
    return _plan(request, "evaluate", title, command=command)


def plan_preflight_job(request: JobRequest) -> SlurmJob:
    """The look at the nodes alone."""
    _check_range(request.min_nodes, request.max_nodes)
    nodes = tuple(range(request.min_nodes, request.max_nodes + 1))
    title = (
        f"{_name_of(request)}: a look at the nodes of the cluster {request.cluster_name}, "
        "written by lmscale.",
    )
    return _plan(request, "preflight", title, nodes=nodes)


def plan_data_job(request: JobRequest, kind: Literal["corpus", "shards"]) -> SlurmJob:
    """An array whose tasks share the building of the corpus, or of the shards."""
    if request.tasks < 1:
        raise ConfigError(f"--tasks {request.tasks}: at least one task is needed.")
    state = plan_state_folder(kind, plan_folder(kind, request.config))
    config = str(state / request.submission / CONFIG_FILE)
    # Only the corpus' inputs are relative to where the job is launched.
    entry = ("launcher.task", str(request.folder)) if kind == "corpus" else ("lmscale.cli.main",)
    title = (
        f"{kind} of {_name_of(request)} in {request.tasks} tasks on the cluster "
        f"{request.cluster_name}, written by lmscale.",
    )
    return _plan(request, kind, title, command=("-m", *entry, kind, "build", config))


def _name_of(request: JobRequest) -> str:
    return request.sweep.name if request.sweep else request.config.run.name


def _common_nodes(request: JobRequest, configs: list[RunConfig]) -> tuple[int, ...]:
    """Node counts that will do for every run of a sweep."""
    plans = [
        plan_nodes(
            config,
            ranks_per_node=request.cluster.ranks_per_node,
            min_nodes=request.min_nodes,
            max_nodes=request.max_nodes,
        )
        for config in configs
    ]
    common = set.intersection(*(set(plan) for plan in plans))
    if not common:
        raise ConfigError(
            f"--nodes {request.min_nodes}-{request.max_nodes}: no number of nodes in this range "
            "will do for all runs of the sweep, whose batch.global_windows differ."
        )
    return tuple(sorted(common))


def _plan(
    request: JobRequest,
    kind: JobKind,
    title: tuple[str, ...],
    *,
    command: tuple[str, ...] = (),
    nodes: tuple[int, ...] = (1,),
    members: tuple[Member, ...] = (),
) -> SlurmJob:
    cluster = request.cluster
    is_parallel = kind in ("train", "preflight")
    is_data = kind in ("corpus", "shards")
    run_folder = plan_folder(kind, request.config, request.sweep)
    state = plan_state_folder(kind, run_folder)
    frozen = state / request.submission
    python = cluster.python or request.python
    gpus = 0 if is_data else cluster.gpus_per_node
    job = SlurmJob(
        kind=kind,
        submission=request.submission,
        name=job_name(_name_of(request), kind, run_folder),
        title=title,
        directives=(),
        run_folder=run_folder,
        state_folder=state,
        frozen_folder=frozen,
        code=frozen / FROZEN_CODE,
        config=frozen / CONFIG_FILE,
        output=f"{str(state).replace('%', '%%')}/job-{'%A_%a' if members or is_data else '%j'}.out",
        python=python,
        command=(python, *command),
        min_nodes=nodes[0],
        max_nodes=nodes[-1],
        usable_nodes=nodes,
        tasks_per_node=cluster.ranks_per_node if is_parallel else 1,
        cpus_per_task=cluster.cpus_per_task,
        gpus_per_node=gpus if is_parallel else min(gpus, 1),
        cluster=cluster,
        srun_options=(*cluster.srun_options, *pyxis_options(cluster)),
        launch_prefix=apptainer_prefix(cluster, gpus),
        chain=cluster.chain if kind == "train" else 1,
        excluded=tuple(dict.fromkeys((*cluster.exclude, *request.excluded))),
        tasks=request.tasks if is_data else None,
        only=request.only if is_data else (),
        members=members,
    )
    return replace(job, directives=plan_directives(job))


def job_name(name: str, kind: JobKind, folder: Path) -> str:
    """Slurm's name for the job: two runs of one name in two folders must not share a chain."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return f"{name}-{digest}" if kind == "train" else f"{name}-{kind}-{digest}"


def _describe_nodes(nodes: tuple[int, ...], cluster: ClusterConfig) -> str:
    counts = count_of(nodes[-1], "node")
    counts = counts if len(nodes) == 1 else f"{nodes[0]} to {counts}"
    gpus = f" and {cluster.gpus_per_node} GPUs" if cluster.gpus_per_node else ""
    return f"{counts} with {count_of(cluster.ranks_per_node, 'rank')}{gpus} each."


def count_of(number: int, noun: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
