"""What the planner says of a run before it is submitted: whether it fits, and how fast it is."""

from __future__ import annotations

from launcher.data_checks import Findings
from launcher.job import JobRequest, SlurmJob
from lmscale.config import RunConfig
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.errors import ConfigError
from lmscale.files.printing import count_of
from lmscale.plan.devices import Device, Machine, find_device, plan_machine
from lmscale.plan.memory import check_fits
from lmscale.plan.quote import advise_fit, describe_unplanned, quote_plan


def check_plan(request: JobRequest, job: SlurmJob, findings: Findings) -> None:
    """Take up whether each run of a training fits the fewest nodes that it may get, where the
    profile says what its GPUs are. One that cannot is a problem, or with ``--ignore-plan`` a
    warning.
    """
    device = find_gpu(job.cluster) if job.kind == "train" and job.gpus_per_node else None
    if device is None:
        return
    machines = [
        plan_machine(device, nodes=nodes, devices_per_node=job.tasks_per_node)
        for nodes in job.usable_nodes
    ]
    told = findings.warnings if request.ignores_plan else findings.problems
    for config in request.runs:
        try:
            if why := check_fits(config, machines[0]):
                findings.warnings += describe_unplanned(config, machines[0])
                may_fit = config.engine.activation_memory_budget < 1  # holds less than planned
                (findings.warnings if may_fit else told).append(
                    _refuse(config, machines[0], why, ignored=may_fit or request.ignores_plan)
                )
            elif config is request.runs[0]:
                findings.passed += quote_plan(config, machines[-1])
        except ConfigError as error:  # a family that cannot be planned is no reason to train none
            findings.warnings += [f"nothing is planned: {problem}" for problem in error.problems]
        except Exception as error:  # nor is a mistake of the planner's own
            findings.warnings += [f"nothing is planned, by a mistake of the planner: {error!r}"]


def find_gpu(cluster: ClusterConfig) -> Device | None:
    """The profile's GPU: its ``gpu``, or its ``gpu_type`` where that names one."""
    if cluster.gpu is not None:
        return find_device(cluster.gpu)
    try:
        return find_device(cluster.gpu_type) if cluster.gpu_type else None
    except ConfigError:  # Slurm's names are each site's own
        return None


def _refuse(config: RunConfig, machine: Machine, why: str, *, ignored: bool) -> str:
    nodes = count_of(machine.nodes, "node")
    told = f"{config.run.name} cannot fit {nodes}: by the plan {why}. "
    return told + advise_fit(config, machine) + ("" if ignored else " --ignore-plan submits it.")
