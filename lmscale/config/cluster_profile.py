"""A cluster profile as values: its keys, their types and defaults."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from lmscale.config.base import Place, Section
from lmscale.config.cluster_rules import RULES

MAX_TASKS = 65_533  # on a node: what Slurm itself counts in 16 bits


class PreflightConfig(Section):
    """The checks of the allocated nodes before the ranks start."""

    enabled: bool = True
    timeout_seconds: PositiveInt = Field(default=180, le=86_400)
    """A node that has not reported by then is bad."""
    slow_ratio: float = Field(default=0.8, gt=0, le=1)
    """A node slower than this part of the median node is bad."""
    min_free_gb: float = Field(default=10, ge=0)
    """Free space that the run's folder and the scratch folder must have."""
    max_clock_skew_seconds: float = Field(default=2, gt=0)
    all_reduce_mb: PositiveInt = Field(default=64, le=2**16)
    """Size of the all-reduce whose speed is shown."""
    matrix_size: PositiveInt | None = Field(default=None, le=2**17)
    """Side of the matrices whose product is timed; default: by the device."""
    command: str | None = None
    """A line of shell, run once on each node: the site's own health check. 0 is fit."""
    cordon_file: Place | None = None
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


class DataJobsConfig(Section):
    """What jobs of corpus, tokenizer and shards ask for; null is the profile's own key."""

    partition: str | None = None
    """Of nodes without GPUs, where there are some; ``""`` in this and the next keys is none."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    time: str | None = None
    cpus_per_task: PositiveInt | None = Field(default=None, le=MAX_TASKS)
    """Cores of each task, and the processes that it works with."""
    memory: str | None = None
    """Of each task: ``16G``. Null is a rank's part of the profile's ``memory_per_node``."""
    array_limit: PositiveInt | None = None
    sbatch_options: tuple[str, ...] | None = Field(default=None, strict=False)

    @field_validator("time", "memory", mode="before")
    @classmethod
    def _numbers_are_told(cls, value: Any) -> Any:
        if type(value) in (int, float):
            raise ValueError(f"write it in quotes, with its unit; found the number {value}")
        return value


class ClusterConfig(Section):
    """A cluster, or a partition of one. ``slurm/profiles/example.yaml`` explains every key."""

    problem_separator = "\n"  # validate_tree takes them apart
    rules = RULES

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
    chain: PositiveInt = Field(default=1, le=1000)
    """Where requeue is false: jobs submitted at once, of which one runs at a time."""

    gpus_per_node: int = Field(default=0, ge=0, le=MAX_TASKS)
    gpu_type: str | None = None
    gpu: str | None = None
    """Which GPU that is, as ``lmscale plan --gpu`` names it (``h100-80gb``), or a file of its
    figures: a run that cannot fit it is refused. Default: ``gpu_type``, if that is such a name.
    """
    tasks_per_node: PositiveInt | None = Field(default=None, le=MAX_TASKS)
    """Ranks on a node; default: one per GPU."""
    cpus_per_task: PositiveInt = Field(default=1, le=MAX_TASKS)
    bind_ranks: bool = True
    """Whether a rank runs on the cores beside its GPU; a --cpu-bind of srun_options comes first."""
    memory_per_node: str | None = None
    """``64G``; ``0`` is all of the node's."""
    sbatch_options: tuple[str, ...] = Field(default=(), strict=False)
    """More lines of #SBATCH, such as ``--mail-type=END``."""
    srun_options: tuple[str, ...] = Field(default=(), strict=False)
    """More options of the srun that starts the ranks, such as ``--mpi=none``."""

    modules: tuple[str, ...] = Field(default=(), strict=False)
    """Loaded by ``module load`` before anything runs."""
    setup: tuple[str, ...] = Field(default=(), strict=False)
    """Lines of shell, run as they stand before anything else."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Exported to the ranks: ``NCCL_*``, ``GLOO_SOCKET_IFNAME``, …"""
    python: Place | None = None
    """The interpreter on the nodes; default: the submitting interpreter."""
    container: ContainerConfig = ContainerConfig()
    environment: Literal["refuse", "warn"] = "refuse"
    """What becomes of an attempt that finds another torch, CUDA, numpy or the like installed than
    the submission had: it ends with exit code 2, or goes on and says so.
    """

    scratch: Place = "/tmp"
    """Local to each node: caches of compiled kernels."""
    shared: tuple[Place, ...] = Field(default=(), strict=False)
    """Folders visible on all nodes. Runs and shards must lie below one; empty: not known."""
    preflight: PreflightConfig = PreflightConfig()
    array_limit: PositiveInt | None = None
    """Most tasks of an array at once."""
    data: DataJobsConfig = DataJobsConfig()

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
    def lets_ranks_bind(self) -> bool:
        """Whether Slurm leaves the ranks all cores of a node, so that each takes its GPU's."""
        is_slurms = any(option.startswith("--cpu-bind") for option in self.srun_options)
        return self.bind_ranks and self.gpus_per_node > 0 and not is_slurms

    @property
    def runs_as_submitted(self) -> bool:
        """Whether the jobs' Python is the submitting one, with nothing loaded before it."""
        changes = (self.python, self.modules, self.setup, self.container.kind != "none")
        return not any(changes)

    @property
    def memory_kib(self) -> int:
        """``memory_per_node``, whose numbers without a unit are megabytes to Slurm; 0: all."""
        text = (self.memory_per_node or "0").upper()
        text += "" if text[-1] in "KMGT" else "M"
        return int(text[:-1]) * 1024 ** "KMGT".index(text[-1])

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node

    def for_data(self) -> ClusterConfig:
        """The profile of a job that makes data: its section ``data`` in place of the keys."""
        given = {name: getattr(self.data, name) for name in DataJobsConfig.model_fields}
        changes = {name: value or None for name, value in given.items() if value is not None}
        if self.data.sbatch_options is not None:
            changes["sbatch_options"] = self.data.sbatch_options
        changes.pop("memory", None)
        return self.model_copy(update=changes)
