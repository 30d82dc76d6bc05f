"""What a cluster profile means in the words of sbatch, Pyxis and Apptainer. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.job import SlurmJob
from lmscale.config.cluster_profile import ClusterConfig


def plan_directives(job: SlurmJob) -> tuple[str, ...]:
    """The #SBATCH lines, unquoted."""
    cluster = job.cluster
    is_whole = job.kind in ("train", "preflight")
    array = len(job.members) or job.tasks or 0
    limit = f"%{cluster.array_limit}" if cluster.array_limit else ""
    is_elastic = job.max_nodes > job.min_nodes
    nodes = f"{job.min_nodes}-{job.max_nodes}" if is_elastic else job.min_nodes
    memory = cluster.memory_per_node
    if not is_whole:  # one rank's part; Slurm's default where the profile takes all
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
        "exclusive": "" if cluster.exclusive and is_whole else None,
        "exclude": ",".join(job.excluded) or None,
        "time": cluster.time,
        # To the batch script alone (B:), which passes it on: it knows when the ranks can listen.
        "signal": f"B:USR1@{cluster.signal_seconds}" if job.kind != "evaluate" else None,
        "requeue" if cluster.requeue else "no-requeue": "",
        "dependency": "singleton" if job.chain > 1 else None,
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


def render_numbers(numbers: Iterable[int]) -> str:
    """``0,3-5``, as sbatch's --array reads it."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs)


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
