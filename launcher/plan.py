"""What is asked for → what a Slurm job is: every field absolute and final. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from launcher.job import ARRAY_KINDS, DATA_KINDS, JobKind, JobRequest, Member, SlurmJob
from launcher.scoring import plan_scoring
from lmscale.config import RunConfig
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.errors import ConfigError
from lmscale.files.printing import count_of
from lmscale.files.run_files import CONFIG_FILE, DATA_SLURM_FOLDER, SLURM_FOLDER
from lmscale.ranks.ranks import render_numbers
from lmscale.runs.environment import FROZEN_CODE
from lmscale.runs.sweep_folder import Sweep


def plan_nodes(
    config: RunConfig, *, ranks_per_node: int, min_nodes: int, max_nodes: int
) -> tuple[int, ...]:
    """The numbers of nodes in a range that can train a configuration. Raises ``ConfigError``."""
    sizes = config.batch.step_sizes
    ranks = count_of(ranks_per_node, "rank")
    fits = [
        n for n in range(1, sizes[0] + 1) if not any(size % (n * ranks_per_node) for size in sizes)
    ]
    usable = tuple(count for count in fits if min_nodes <= count <= max_nodes)
    if usable:
        return usable
    if min_nodes == max_nodes:
        try:
            config.batch.plan(min_nodes * ranks_per_node)
        except ConfigError as error:
            near = sorted(sorted(fits, key=lambda n: abs(n - min_nodes))[:4])
            advice = f"No number of nodes with {ranks} each will do."
            if near:
                advice = f"With {ranks} a node that is --nodes {' or '.join(map(str, near))}."
            raise ConfigError(f"{error} {advice}") from None
    raise ConfigError(
        f"--nodes {min_nodes}-{max_nodes}: no number of nodes in this range, with "
        f"{ranks} each, shares {describe_step_sizes(config)} evenly."
    )


def describe_step_sizes(config: RunConfig) -> str:
    sizes = f"batch.global_windows = {config.batch.global_windows}"
    smaller = ", ".join(map(str, config.batch.step_sizes[:-1]))
    return f"{sizes}, and {smaller} of batch.warmup," if smaller else sizes


def plan_folder(kind: JobKind, config: RunConfig, sweep: Sweep | None = None) -> Path:
    """The folder that a job works for: a run's, a sweep's, or that of the data it builds."""
    if kind == "corpus":
        return Path(config.corpus.folder)
    if kind == "tokenizer":
        return Path(config.tokenizer.folder)
    if kind == "shards":
        return Path(config.shards.folder)
    return sweep.root if sweep else config.folder


def plan_state_folder(kind: JobKind, folder: Path) -> Path:
    """Where a job keeps its frozen copies, its events and its output."""
    return folder / (DATA_SLURM_FOLDER if kind in DATA_KINDS else SLURM_FOLDER)


def plan_job(request: JobRequest, kind: JobKind) -> SlurmJob:
    """A job of this kind; of a corpus or of shards an array, whose tasks share the work."""
    if kind == "train":
        return _plan_training(request)
    if kind == "preflight":
        nodes = tuple(range(request.min_nodes, request.max_nodes + 1))
        return _plan(request, kind, f"{request.name}: a look at the nodes of", nodes=nodes)
    main = ("-m", "lmscale.cli.main")
    if kind == "evaluate":
        commands = plan_scoring(request.config, main, step=request.step)
        what = f"{request.name}: evaluation on"
        counts = tuple(range(request.min_nodes, request.max_nodes + 1))
        nodes = counts if request.takes_whole_nodes else (1,)
        return _plan(
            request, kind, what, command=commands[0], more_commands=commands[1:], nodes=nodes
        )
    state = plan_state_folder(kind, plan_folder(kind, request.config))
    config = str(state / request.submission / CONFIG_FILE)
    if kind == "tokenizer":
        what = f"tokenizer of {request.name} on"
        return _plan(request, kind, what, command=(*main, kind, "train", config))
    # Only the corpus' inputs are relative to where the job is launched.
    entry = ("-m", "launcher.task", str(request.folder)) if kind == "corpus" else main
    what = f"{kind} of {request.name} in {count_of(request.tasks, 'task')} on"
    return _plan(request, kind, what, command=(*entry, kind, "build", config))


def _plan_training(request: JobRequest) -> SlurmJob:
    """A run, or with ``request.sweep`` an array of runs, in as many attempts as it takes."""
    cluster, sweep = request.cluster, request.sweep
    if sweep and cluster.chain > 1:
        raise ConfigError(
            f"--array: a sweep cannot be a chain of {cluster.chain} jobs, whose tasks would wait "
            "for each other's runs. Add --chain 1, with a time limit that each run can finish in; "
            "the same command again goes on with runs that did not. Or use a profile that requeues."
        )
    nodes = _common_nodes(request)
    folder = plan_folder("train", request.config, sweep)
    frozen = plan_state_folder("train", folder) / request.submission
    members = tuple(
        Member(
            index=index,
            name=config.run.name,
            run_folder=config.folder,
            config=frozen / "configs" / f"{index:03d}.yaml",
        )
        for index, config in enumerate(request.runs if sweep else ())
    )
    counts = count_of(nodes[-1], "node")
    counts = counts if len(nodes) == 1 else f"{nodes[0]} to {counts}"
    gpus = f" and {cluster.gpus_per_node} GPUs" if cluster.gpus_per_node else ""
    more = [f"{counts} with {count_of(cluster.ranks_per_node, 'rank')}{gpus} each."]
    more += [f"A sweep of {len(members)} runs in {folder}."] if members else []
    command = ("-m", "launcher.rank", *_plan_profile(request, nodes))
    what = f"{request.name}: training on"
    return _plan(request, "train", what, *more, command=command, nodes=nodes, members=members)


def _plan_profile(request: JobRequest, nodes: tuple[int, ...]) -> tuple[str, ...]:
    if request.profile is None:
        return ()
    for config in request.runs:
        world_size = nodes[0] * request.cluster.ranks_per_node  # with fewer nodes than asked for
        request.profile.check(steps=config.train.steps, world_size=world_size)
    return request.profile.words


def _common_nodes(request: JobRequest) -> tuple[int, ...]:
    """Node counts that will do for the run, or for every run of a sweep."""
    low, high = request.min_nodes, request.max_nodes
    ranks = request.cluster.ranks_per_node
    common = set(range(low, high + 1))
    for config in request.runs:
        common &= {*plan_nodes(config, ranks_per_node=ranks, min_nodes=low, max_nodes=high)}
    if not common:
        raise ConfigError(
            f"--nodes {low}-{high}: no number of nodes in this range "
            "will do for all runs of the sweep, whose batch.global_windows differ."
        )
    return tuple(sorted(common))


def _plan(
    request: JobRequest,
    kind: JobKind,
    what: str,
    *more_title: str,
    command: tuple[str, ...] = (),
    more_commands: tuple[tuple[str, ...], ...] = (),
    nodes: tuple[int, ...] = (1,),
    members: tuple[Member, ...] = (),
) -> SlurmJob:
    cluster = request.cluster
    is_parallel = kind not in DATA_KINDS and request.takes_whole_nodes
    is_data, is_array = kind in DATA_KINDS, kind in ARRAY_KINDS
    run_folder = plan_folder(kind, request.config, request.sweep)
    state = plan_state_folder(kind, run_folder)
    frozen = state / request.submission
    number = "%A_%a" if members or is_array else "%j"
    python = cluster.python or request.python
    gpus = 0 if is_data else cluster.gpus_per_node
    job = SlurmJob(
        kind=kind,
        submission=request.submission,
        name=job_name(request.name, kind, run_folder),
        title=(f"{what} the cluster {request.cluster_name}, written by lmscale.", *more_title),
        directives=(),
        run_folder=run_folder,
        state_folder=state,
        frozen_folder=frozen,
        code=frozen / FROZEN_CODE,
        config=frozen / CONFIG_FILE,
        output=f"{str(state).replace('%', '%%')}/job-{number}.out",
        python=python,
        command=(python, *command),
        more_commands=tuple((python, *each) for each in more_commands),
        step=request.step,
        after=request.after,
        min_nodes=nodes[0],
        max_nodes=nodes[-1],
        usable_nodes=nodes,
        is_parallel=is_parallel,
        tasks_per_node=cluster.ranks_per_node if is_parallel else 1,
        cpus_per_task=cluster.cpus_per_task,
        gpus_per_node=gpus if is_parallel else min(gpus, 1),
        cluster=cluster,
        srun_options=(*cluster.srun_options, *pyxis_options(cluster)),
        launch_prefix=apptainer_prefix(cluster, gpus),
        chain=cluster.chain if kind == "train" else 1,
        excluded=tuple(dict.fromkeys((*cluster.exclude, *request.excluded))),
        tasks=request.tasks if is_array else None,
        only=request.only if is_array else (),
        members=members,
    )
    return replace(job, directives=plan_directives(job))


def job_name(name: str, kind: JobKind, folder: Path) -> str:
    """Slurm's name for the job: two runs of one name in two folders must not share a chain."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return f"{name}-{digest}" if kind == "train" else f"{name}-{kind}-{digest}"


def plan_directives(job: SlurmJob) -> tuple[str, ...]:
    """The #SBATCH lines, unquoted."""
    cluster = job.cluster
    array = len(job.members) or job.tasks or 0
    limit = f"%{cluster.array_limit}" if cluster.array_limit else ""
    is_elastic = job.max_nodes > job.min_nodes
    nodes = f"{job.min_nodes}-{job.max_nodes}" if is_elastic else job.min_nodes
    memory = cluster.memory_per_node
    if job.kind in DATA_KINDS and cluster.data.memory:
        memory = cluster.data.memory
    elif not job.is_parallel:  # one rank's part; Slurm's default where the profile takes all
        share = max(1, cluster.memory_kib // cluster.ranks_per_node)
        memory = f"{share}K" if cluster.memory_kib else None
    gpu_type = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    options = {
        "job-name": job.name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "reservation": cluster.reservation,
        "array": f"{render_numbers(job.only or range(array))}{limit}" if array else None,
        "nodes": nodes,
        # Slurm 22.05 remembers the number of tasks of the first start; asked for tasks, it would
        # never requeue the job on fewer nodes. srun says how many run on the nodes there are.
        "mincpus": job.tasks_per_node * job.cpus_per_task if is_elastic else None,
        "ntasks-per-node": None if is_elastic else job.tasks_per_node,
        "cpus-per-task": None if is_elastic else job.cpus_per_task,
        "gres": f"gpu:{gpu_type}{job.gpus_per_node}" if job.gpus_per_node else None,
        "mem": memory,
        "exclusive": "" if cluster.exclusive and job.is_parallel else None,
        "exclude": ",".join(job.excluded) or None,
        "time": cluster.time,
        # To the batch script alone (B:), which passes it on: it knows when the ranks can listen.
        "signal": f"B:USR1@{cluster.signal_seconds}" if job.kind != "evaluate" else None,
        "requeue" if cluster.requeue else "no-requeue": "",
        "dependency": plan_dependency(job),
        # A job that can never begin ends, and so do those that wait for it.
        "kill-on-invalid-dep": "yes" if job.after else None,
        "open-mode": "append",
        "output": job.output,
        "chdir": str(job.frozen_folder),
    }
    ours = (
        f"--{name}={value}" if value != "" else f"--{name}"
        for name, value in options.items()
        if value is not None
    )
    return (*ours, *cluster.sbatch_options)


def plan_dependency(job: SlurmJob) -> str | None:
    """What the job waits for. Raises ``ConfigError`` where a chain cannot."""
    if job.chain == 1:
        return job.after
    if job.after and "?" in job.after:
        raise ConfigError(
            f"--after {job.after}: the jobs of a chain wait for each other as well, and sbatch "
            "cannot join that with a question mark. Give conditions with commas between them."
        )
    return ",".join(filter(None, ["singleton", job.after]))


def pyxis_options(cluster: ClusterConfig) -> tuple[str, ...]:
    container = cluster.container
    if container.kind != "pyxis":
        return ()
    # Variables that the image sets itself would otherwise win over the job's.
    variables = ("PYTHONPATH", *cluster.variables)
    return (
        f"--container-image={container.image}",
        f"--container-mounts={','.join(_mounts(cluster))}",
        f"--container-env={','.join(variables)}",
        *container.options,
    )


def apptainer_prefix(cluster: ClusterConfig, gpus: int) -> tuple[str, ...]:
    container = cluster.container
    if container.kind != "apptainer":
        return ()
    mounts = (part for mount in _mounts(cluster) for part in ("--bind", mount))
    nvidia = ("--nv",) if gpus else ()
    return ("apptainer", "exec", *nvidia, *mounts, *container.options, container.image)


def _mounts(cluster: ClusterConfig) -> tuple[str, ...]:
    """The shared and scratch folders at their own places, and what the profile adds."""
    folders = (*(folder for folder in cluster.shared if folder != "/"), cluster.scratch)
    both = (f"{folder}:{folder}" for folder in folders)
    given = (mount if ":" in mount else f"{mount}:{mount}" for mount in cluster.container.mounts)
    return tuple(dict.fromkeys((*both, *given)))
