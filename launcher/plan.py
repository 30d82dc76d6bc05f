"""What is asked for → what a Slurm job is: every field absolute and final. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from launcher.directives import apptainer_prefix, plan_directives, pyxis_options
from launcher.job import JobKind, JobRequest, Member, SlurmJob, SweepPlan
from lmscale.config import RunConfig, plan_batches
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.errors import ConfigError
from lmscale.files.run_files import DATA_SLURM_FOLDER, SLURM_FOLDER
from lmscale.runs.code_state import FROZEN_CODE


@dataclass(frozen=True, kw_only=True)
class NodePlan:
    """Which numbers of nodes in a range can train a configuration."""

    usable: tuple[int, ...]
    unusable: tuple[int, ...]


def plan_nodes(
    config: RunConfig, *, ranks_per_node: int, min_nodes: int, max_nodes: int
) -> NodePlan:
    """Raises ``ConfigError`` when no number of nodes in the range will do."""
    if not 1 <= min_nodes <= max_nodes:
        raise ConfigError(f"--nodes {min_nodes}-{max_nodes}: give N, or MIN-MAX from 1 on.")
    windows = config.batch.global_windows
    counts = range(min_nodes, max_nodes + 1)
    ranks = f"{ranks_per_node} rank{'s'[: ranks_per_node > 1]}"
    usable = tuple(count for count in counts if windows % (count * ranks_per_node) == 0)
    if not usable and min_nodes == max_nodes:
        try:
            plan_batches(
                global_windows=windows,
                micro_windows=config.batch.micro_windows,
                world_size=min_nodes * ranks_per_node,
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
    return NodePlan(usable=usable, unusable=tuple(c for c in counts if c not in usable))


def plan_folder(kind: JobKind, config: RunConfig, sweep: SweepPlan | None = None) -> Path:
    """Whose folder a job works for."""
    if kind == "corpus":
        return Path(config.corpus.folder)
    if kind == "shards":
        return Path(config.shards.folder)
    return sweep.root if sweep else config.folder


def plan_state_folder(kind: JobKind, folder: Path) -> Path:
    """Where it keeps its frozen copies, its events and its output."""
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
    name = sweep.name if sweep else request.config.run.name
    return _plan(
        request,
        kind="train",
        name=name,
        run_folder=folder,
        nodes=nodes,
        title=(
            f"{name}: training on the cluster {request.cluster_name}, written by lmscale.",
            _describe_nodes(nodes, cluster),
            *((f"A sweep of {len(members)} runs in {folder}.",) if members else ()),
        ),
        command=("-m", "launcher.rank"),
        array=len(members),
        members=members,
    )


def plan_evaluate_job(request: JobRequest) -> SlurmJob:
    """One rank that scores the run's newest checkpoint."""
    folder = request.config.folder
    return _plan(
        request,
        kind="evaluate",
        name=request.config.run.name,
        run_folder=folder,
        nodes=(1,),
        title=(
            f"{request.config.run.name}: evaluation on the cluster {request.cluster_name}, "
            "written by lmscale.",
        ),
        command=("-m", "lmscale.cli.main", "evaluate", str(folder)),
    )


def plan_preflight_job(request: JobRequest) -> SlurmJob:
    """The look at the nodes alone."""
    nodes = tuple(range(request.min_nodes, request.max_nodes + 1))
    if not nodes or nodes[0] < 1:
        raise ConfigError(
            f"--nodes {request.min_nodes}-{request.max_nodes}: give N, or MIN-MAX from 1 on."
        )
    return _plan(
        request,
        kind="preflight",
        name=request.config.run.name,
        run_folder=request.config.folder,
        nodes=nodes,
        title=(
            f"{request.config.run.name}: a look at the nodes of the cluster "
            f"{request.cluster_name}, written by lmscale.",
        ),
        command=(),
    )


def plan_data_job(request: JobRequest, kind: Literal["corpus", "shards"]) -> SlurmJob:
    """An array whose tasks share the building of the corpus, or of the shards."""
    if request.tasks < 1:
        raise ConfigError(f"--tasks {request.tasks}: at least one task is needed.")
    folder = plan_folder(kind, request.config)
    config = plan_state_folder(kind, folder) / request.submission / "config.yaml"
    # Only the corpus' inputs are relative to where the job is launched.
    entry = ("launcher.task", str(request.folder)) if kind == "corpus" else ("lmscale.cli.main",)
    return _plan(
        request,
        kind=kind,
        name=request.config.run.name,
        run_folder=folder,
        nodes=(1,),
        title=(
            f"{kind} of {request.config.run.name} in {request.tasks} tasks on the cluster "
            f"{request.cluster_name}, written by lmscale.",
        ),
        command=("-m", *entry, kind, "build", str(config)),
        array=request.tasks,
    )


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
    common = set.intersection(*(set(plan.usable) for plan in plans))
    if not common:
        raise ConfigError(
            f"--nodes {request.min_nodes}-{request.max_nodes}: no number of nodes in this range "
            "will do for all runs of the sweep, whose batch.global_windows differ."
        )
    return tuple(sorted(common))


def _plan(
    request: JobRequest,
    *,
    kind: JobKind,
    name: str,
    run_folder: Path,
    nodes: tuple[int, ...],
    title: tuple[str, ...],
    command: tuple[str, ...],
    array: int = 0,
    members: tuple[Member, ...] = (),
) -> SlurmJob:
    cluster = request.cluster
    is_parallel = kind in ("train", "preflight")
    is_data = kind in ("corpus", "shards")
    state = plan_state_folder(kind, run_folder)
    frozen = state / request.submission
    python = cluster.python or request.python
    gpus = 0 if is_data else cluster.gpus_per_node
    job = SlurmJob(
        kind=kind,
        submission=request.submission,
        name=job_name(name, kind, run_folder),
        title=title,
        directives=(),
        run_folder=run_folder,
        state_folder=state,
        frozen_folder=frozen,
        code=frozen / FROZEN_CODE,
        config=frozen / "config.yaml",
        output=f"{str(state).replace('%', '%%')}/job-{'%A_%a' if array else '%j'}.out",
        python=python,
        command=(python, *command),
        min_nodes=nodes[0],
        max_nodes=nodes[-1],
        usable_nodes=nodes,
        tasks_per_node=cluster.ranks_per_node if is_parallel else 1,
        cpus_per_task=cluster.cpus_per_task,
        gpus_per_node=gpus if is_parallel else min(gpus, 1),
        variables=tuple(cluster.variables.items()),
        modules=cluster.modules,
        setup=cluster.setup,
        srun_options=(*cluster.srun_options, *pyxis_options(cluster)),
        launch_prefix=apptainer_prefix(cluster, gpus),
        scratch=cluster.scratch,
        signal_seconds=cluster.signal_seconds,
        requeue=cluster.requeue,
        max_restarts=cluster.max_restarts,
        chain=cluster.chain if kind == "train" else 1,
        preflight=cluster.preflight,
        excluded=tuple(dict.fromkeys((*cluster.exclude, *request.excluded))),
        tasks=array if is_data else None,
        only=request.only if is_data else (),
        members=members,
    )
    return replace(job, directives=plan_directives(job, cluster))


def job_name(name: str, kind: JobKind, folder: Path) -> str:
    """Slurm's name for the job: two runs of one name in two folders must not share a chain."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return f"{name}-{digest}" if kind == "train" else f"{name}-{kind}-{digest}"


def _describe_nodes(nodes: tuple[int, ...], cluster: ClusterConfig) -> str:
    counts = str(nodes[0]) if len(nodes) == 1 else f"{nodes[0]} to {nodes[-1]}"
    gpus = f" and {cluster.gpus_per_node} GPUs" if cluster.gpus_per_node else ""
    plural = "" if nodes[-1] == 1 else "s"
    ranks = f"{cluster.ranks_per_node} rank{'s'[: cluster.ranks_per_node > 1]}"
    return f"{counts} node{plural} with {ranks}{gpus} each."
