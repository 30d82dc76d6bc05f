"""What a Slurm job is, decided before anything is written: every field absolute and final. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmscale.config import RunConfig
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.files.run_files import SLURM_FOLDER
from lmscale.runs.profiles import ProfilePlan
from lmscale.runs.sweep_folder import Sweep

JobKind = Literal["train", "evaluate", "corpus", "tokenizer", "shards", "preflight"]
ARRAY_KINDS = ("corpus", "shards")  # whose work is shared by the tasks of an array
DATA_KINDS = ("corpus", "tokenizer", "shards")  # in the order in which one needs another


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a sweep: the job's array task with its ``index`` trains it."""

    index: int
    name: str
    run_folder: Path
    config: Path

    @property
    def state_folder(self) -> Path:
        """Where the run keeps its events, exits, owner and cancel."""
        return self.run_folder / SLURM_FOLDER


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What is asked for: a run on a cluster."""

    config: RunConfig  # with absolute places: ``lmscale.config.run``
    cluster: ClusterConfig
    cluster_name: str
    cluster_file: Path | None = None
    submission: str  # an id that the state folder has not seen yet
    python: str  # the interpreter that submits
    folder: Path  # where it submits from: what the corpus' inputs are relative to
    min_nodes: int = 1
    max_nodes: int = 1
    takes_whole_nodes: bool = True  # a rank for each GPU; False: an evaluation of one rank
    excluded: tuple[str, ...] = ()  # nodes that the cordon file leaves out, besides the profile's
    tasks: int = 1  # tasks of a data job's array
    only: tuple[int, ...] = ()  # numbers of the tasks to submit; empty: all
    step: int | None = None  # of the checkpoint to evaluate; None: the newest one
    after: str | None = None  # what it waits for, as sbatch calls it: afterok:12
    is_awaited: bool = False  # earlier jobs of its pipeline make what it reads
    sweep: Sweep | None = None
    profile: ProfilePlan | None = None  # steps that the ranks trace
    ignores_plan: bool = False  # whether it is submitted though the planner says it cannot fit

    @property
    def name(self) -> str:
        return self.sweep.name if self.sweep else self.config.run.name

    @property
    def runs(self) -> list[RunConfig]:
        return list(self.sweep.configs) if self.sweep else [self.config]


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The values of a batch script's template, unquoted: ``launcher.render`` quotes them."""

    kind: JobKind
    submission: str
    name: str  # Slurm's: equal for submissions of the same kind to the same folder only
    title: tuple[str, ...]  # lines of comment for the head of the script, without the #
    directives: tuple[str, ...]  # ``--option=value`` or ``--option``, one for each #SBATCH line

    run_folder: Path  # the run's; of a sweep its root; of a data job the folder that it builds
    state_folder: Path  # ``slurm`` in the run's folder; ``.slurm`` in a data job's
    frozen_folder: Path  # ``state_folder/submission``
    code: Path  # first on PYTHONPATH
    config: Path  # the frozen configuration (of a sweep: of its base)
    output: str  # where Slurm writes the batch script's output, with Slurm's %j or %A_%a in it

    python: str
    command: tuple[str, ...]  # one task's words, to which the template adds what only a task knows
    more_commands: tuple[tuple[str, ...], ...] = ()  # an evaluation's, one after the other

    min_nodes: int
    max_nodes: int
    usable_nodes: tuple[int, ...]  # counts, ascending, whose ranks share a step's windows evenly
    is_parallel: bool  # of whole nodes, with a rank for each GPU
    tasks_per_node: int
    cpus_per_task: int
    gpus_per_node: int

    cluster: ClusterConfig
    srun_options: tuple[str, ...]  # the profile's options, and those of a Pyxis container
    launch_prefix: tuple[str, ...]  # between srun and Python: ``apptainer exec … IMAGE``, or none
    chain: int  # jobs of a singleton chain; 1 is a job alone

    excluded: tuple[str, ...] = ()  # nodes that this submission leaves out from the start
    step: int | None = None
    after: str | None = None  # its dependency, but for a chain's own
    tasks: int | None = None
    only: tuple[int, ...] = ()
    members: tuple[Member, ...] = ()

    def output_of(self, number: str) -> str:
        """Where job ``number`` writes; with a * for the tasks of an array."""
        output = self.output.replace("%%", "\0").replace("%j", number)
        return output.replace("%A", number).replace("%a", "*").replace("\0", "%")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job that could be submitted, as far as its configuration and the profile go."""

    request: JobRequest
    job: SlurmJob
    script: str
    warnings: tuple[str, ...]
