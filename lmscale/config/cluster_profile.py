"""A cluster profile as values: the keys, their types and their defaults. Each value was judged."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from lmscale.config.base import Section
from lmscale.config.cluster_problems import find_problems


class PreflightConfig(Section):
    """The checks of the allocated nodes before the ranks start."""

    enabled: bool = True
    timeout_seconds: PositiveInt = 180
    """A node that has not reported by then is bad."""
    slow_ratio: float = Field(default=0.8, gt=0, le=1)
    """A node slower than this part of the median node is bad."""
    min_free_gb: float = Field(default=10, ge=0)
    """Free space that the run's folder and the scratch folder must have."""
    max_clock_skew_seconds: float = Field(default=2, gt=0)
    all_reduce_mb: PositiveInt = 64
    """Size of the all-reduce whose speed is compared."""
    matrix_size: PositiveInt | None = None
    """Side of the matrices whose product is timed; default: by the device."""
    command: str | None = None
    """A line of shell, run once on each node: the site's own health check. 0 is fit."""
    cordon_file: str | None = None
    """File of bad nodes, which the next job excludes; visible on all nodes."""
    cordon_hours: float = Field(default=24, gt=0)
    """How long a node stays excluded."""


class ContainerConfig(Section):
    """The image that the ranks run in; the batch script itself runs outside of it."""

    kind: Literal["none", "pyxis", "apptainer"] = "none"
    image: str = ""
    mounts: tuple[str, ...] = Field(default=(), strict=False)
    """``/host:/inside``, or a single path for both sides."""
    options: tuple[str, ...] = Field(default=(), strict=False)
    """More for srun (pyxis) or ``apptainer exec``."""


class ClusterConfig(Section):
    """A cluster, or a partition of one. ``slurm/profiles/example.yaml`` explains every key."""

    description: str = ""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features that every node must have, as Slurm writes them: ``h100&ib``."""
    reservation: str | None = None
    exclude: tuple[str, ...] = Field(default=(), strict=False)
    """Nodes that no job gets, as Slurm lists them: ``n7``, ``n[10-12]``."""
    exclusive: bool = False
    """Whole nodes, whatever is asked of them."""

    time: str
    """Limit of one job: ``D-HH:MM:SS`` or ``HH:MM:SS``. The run may need many of them."""
    signal_seconds: int = Field(default=300, ge=0, le=65_535)
    """How long before the limit the run is told to save and make room; at least 60."""
    requeue: bool = True
    """Whether a job may put itself back into the queue."""
    max_restarts: int = Field(default=20, ge=0)
    """Most restarts after failures; one that has made no new step is the last in any case."""
    chain: PositiveInt = 1
    """Where requeue is false: jobs submitted at once, of which one runs at a time."""

    gpus_per_node: int = Field(default=0, ge=0)
    gpu_type: str | None = None
    tasks_per_node: PositiveInt | None = None
    """Ranks on a node; default: one per GPU."""
    cpus_per_task: PositiveInt = 1
    memory_per_node: str | None = None
    """``64G``; ``0`` is all of the node's."""
    sbatch_options: tuple[str, ...] = Field(default=(), strict=False)
    """More lines of #SBATCH, such as ``--mail-type=END``."""
    srun_options: tuple[str, ...] = Field(default=(), strict=False)
    """More options of the srun that starts the ranks, such as ``--cpu-bind=cores``."""

    modules: tuple[str, ...] = Field(default=(), strict=False)
    """Loaded by ``module load`` before anything runs."""
    setup: tuple[str, ...] = Field(default=(), strict=False)
    """Lines of shell, run as they stand before anything else."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Exported to the ranks: ``NCCL_*``, ``GLOO_SOCKET_IFNAME``, …"""
    python: str | None = None
    """The interpreter on the nodes; default: the submitting interpreter."""
    container: ContainerConfig = ContainerConfig()

    scratch: str = "/tmp"
    """Local to each node: caches of compiled kernels."""
    shared: tuple[str, ...] = Field(default=(), strict=False)
    """Folders visible on all nodes. Runs and shards must lie below one; empty: not known."""
    preflight: PreflightConfig = PreflightConfig()
    array_limit: PositiveInt | None = None
    """Most tasks of an array at once."""

    @model_validator(mode="after")
    def _raise_each_problem(self) -> ClusterConfig:
        if problems := list(find_problems(self)):
            raise ValueError("\n".join(problems))  # one a line: validate_tree takes them apart
        return self

    @field_validator("time", mode="before")
    @classmethod
    def _time_has_a_form(cls, value: Any) -> Any:
        if type(value) in (int, float):
            raise ValueError(
                f'write it in quotes, as "D-HH:MM:SS" or "HH:MM:SS"; found the number {value}'
            )
        return value

    @field_validator("memory_per_node", mode="before")
    @classmethod
    def _memory_may_be_a_number(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value

    @field_validator("variables", mode="before")
    @classmethod
    def _variables_may_be_whole_numbers(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        bad = [f"{key} = {item}" for key, item in value.items() if type(item) in (bool, float)]
        if bad:
            raise ValueError(
                f"{', '.join(bad)}: write the value in quotes, as the shell is to see it"
            )
        return {key: str(item) if type(item) is int else item for key, item in value.items()}

    @property
    def memory_kib(self) -> int:
        """``memory_per_node``, whose numbers without a unit are megabytes to Slurm; 0: all."""
        text = (self.memory_per_node or "0").upper()
        text += "" if text[-1] in "KMGT" else "M"
        return int(text[:-1]) * 1024 ** "KMGT".index(text[-1])

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node
