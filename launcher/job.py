"""What a Slurm job is, decided before anything is written: every field absolute and final. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmscale.config import RunConfig
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.files.run_files import SLURM_FOLDER

JobKind = Literal["train", "evaluate", "corpus", "shards", "preflight"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a sweep: the job's array task with its ``index`` trains it."""

    index: int
    name: str
    run_folder: Path
    config: Path
    """Its frozen configuration."""

    @property
    def state_folder(self) -> Path:
        """Where the run keeps its events, exits, owner and cancel."""
        return self.run_folder / SLURM_FOLDER


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Runs that differ in some settings, trained by one job array."""

    name: str
    root: Path
    keys: tuple[str, ...]
    members: tuple[tuple[dict[str, str], RunConfig], ...]
    """The values by key of each run, and its whole configuration with absolute places."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What is asked for: a run on a cluster."""

    config: RunConfig
    """With absolute places: ``lmscale.config.places``."""
    cluster: ClusterConfig
    cluster_name: str
    cluster_file: Path | None = None
    """Where the profile was read from."""
    submission: str
    """An id that the state folder has not seen yet."""
    python: str
    """The interpreter that submits."""
    folder: Path
    """Where it submits from: what the corpus' inputs are relative to."""
    min_nodes: int = 1
    max_nodes: int = 1
    excluded: tuple[str, ...] = ()
    """Nodes that the profile's cordon file leaves out, besides the profile's own ``exclude``."""
    tasks: int = 1
    """Tasks of a data job's array."""
    only: tuple[int, ...] = ()
    """Numbers of the tasks to submit; empty: all."""
    sweep: SweepPlan | None = None

    @property
    def name(self) -> str:
        """The sweep's name, or the run's."""
        return self.sweep.name if self.sweep else self.config.run.name

    @property
    def runs(self) -> list[RunConfig]:
        """The configurations of the sweep, or the only one."""
        return [config for _, config in self.sweep.members] if self.sweep else [self.config]


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The values of a batch script's template, unquoted: ``launcher.render`` quotes them."""

    kind: JobKind
    submission: str
    """The submission's id, such as 20261122-011900-train."""
    name: str
    """Slurm's name for the job: equal for submissions of the same kind to the same folder only."""
    title: tuple[str, ...]
    """Lines of comment for the head of the script, without the #."""
    directives: tuple[str, ...]
    """``--option=value`` or ``--option``, one for each #SBATCH line."""

    run_folder: Path
    """The run's folder; of a sweep its root; of a data job the folder that it builds."""
    state_folder: Path
    """``slurm`` in the run's folder; ``.slurm`` in a data job's."""
    frozen_folder: Path
    """``state_folder/submission``."""
    code: Path
    """First on PYTHONPATH."""
    config: Path
    """The frozen configuration (of a sweep: of its base)."""
    output: str
    """Where Slurm writes the batch script's output, with Slurm's %j or %A_%a in it."""

    python: str
    command: tuple[str, ...]
    """The command line of one task, from the interpreter on. The template adds what only a task
    knows: a training's configuration and folder, a data job's task number."""

    min_nodes: int
    max_nodes: int
    usable_nodes: tuple[int, ...]
    """Node counts, ascending, whose ranks share a step's windows evenly."""
    tasks_per_node: int
    cpus_per_task: int
    gpus_per_node: int

    cluster: ClusterConfig
    """The profile, for all that it says of every job alike."""
    srun_options: tuple[str, ...]
    """The profile's options, and those of a Pyxis container."""
    launch_prefix: tuple[str, ...]
    """The words between srun and the interpreter: ``apptainer exec … IMAGE``, or nothing."""
    chain: int
    """Jobs of a singleton chain; 1 is a job alone."""

    excluded: tuple[str, ...] = ()
    """Nodes that this submission leaves out from the start."""
    tasks: int | None = None
    """Tasks that share a data job's work."""
    only: tuple[int, ...] = ()
    """Numbers of the tasks to submit; empty: all."""
    members: tuple[Member, ...] = ()
    """Runs of a sweep."""
