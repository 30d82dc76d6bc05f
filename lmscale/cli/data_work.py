"""How much of a stage of the data is left to do, and into how many jobs it is divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lmscale.cli.data_tasks import missing_of, progress_of
from lmscale.config import RunConfig
from lmscale.files.printing import count_of, render_bytes

if TYPE_CHECKING:
    from lmscale.tasks.finishing import Progress

DataStage = Literal["corpus", "tokenizer", "shards"]
TASK_BYTES = 2**30  # for each core of a task: cleaned in a minute, tokenised in some more
MAX_TASKS = 256  # unless a person asks for more; an array may have 1,000 as Slurm comes
_PART = {"corpus": "part of its raw files", "shards": "slice of its documents"}
_PARTS = {"corpus": "parts of its raw files", "shards": "slices of its documents"}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage has left."""

    tasks: int = 1  # into which all of it is divided
    missing: tuple[int, ...] = ()  # those that have work; empty: the stage is done
    note: str = ""  # why the number is not what was asked for, or why nothing is done

    @property
    def is_done(self) -> bool:
        return not self.missing


def find_work(
    config: RunConfig, stage: DataStage, *, asked: int | None, cores: int, awaits: bool = False
) -> Work:
    """What is left of a stage, for at most ``asked`` tasks of so many ``cores`` each.

    ``awaits``: earlier jobs make what it reads. Raises ``LmscaleError`` for mistakes that each task
    would refuse.
    """
    from lmscale.tasks.finishing import read_progress

    if stage == "tokenizer":
        return _tokenizer_work(config, awaits=awaits)
    if awaits and stage == "shards":
        return _expect_shards(config, asked, cores)
    builds = progress_of(config, stage, 1)
    parts = sum(map(_count_parts, builds))
    tasks, note = _divide(stage, _sum_bytes(builds), parts, asked, cores)
    targets = (progress.target for progress in builds if not progress.is_built)
    missing = missing_of(read_progress(target, tasks) for target in targets)
    return Work(tasks=tasks, missing=missing, note=note)


def _count_parts(progress: Progress) -> int:
    """Of a dataset that is built its shards: so many slices as well, or nearly."""
    target = progress.target
    return len(target.units) or len(list(target.files_of(target.load(target.final))))


def _sum_bytes(builds: Sequence[Progress]) -> int:
    return sum(sum(progress.target.sizes) for progress in builds)


def _divide(
    stage: DataStage, num_bytes: int, parts: int, asked: int | None, cores: int
) -> tuple[int, str]:
    """The number of tasks, and why it is not the number that was ``asked`` for."""
    wanted = asked or min(MAX_TASKS, -(-num_bytes // (TASK_BYTES * cores)))
    tasks = max(1, min(wanted, parts))
    if asked is None or tasks == asked:
        return tasks, ""
    many = f"{parts:,} {_PART[stage] if parts == 1 else _PARTS[stage]}"
    return tasks, f"--tasks {asked}: the {stage} is {many}, for {count_of(tasks, 'task')}"


def _expect_shards(config: RunConfig, asked: int | None, cores: int) -> Work:
    """Before there are documents: by the raw files, of which a packed one may grow."""
    from lmscale.corpus.inputs import find_inputs

    files = [file for raw in find_inputs(config.corpus).values() for file in raw]
    num_bytes = sum(file.bytes for file in files)
    splits = 2 * len(config.corpus.sources)
    most = splits + 2 * num_bytes // config.shards.max_bytes
    tasks, _ = _divide("shards", num_bytes, most, asked, cores)
    note = ""
    if asked is not None and tasks != asked:
        raw, size = render_bytes(num_bytes), render_bytes(config.shards.max_bytes)
        note = f"--tasks {asked}: {raw} of raw files fill at most some {most:,} shards of {size}, "
        note += f"for {count_of(tasks, 'task')}"
    return Work(tasks=tasks, missing=tuple(range(tasks)), note=note)


def _tokenizer_work(config: RunConfig, *, awaits: bool) -> Work:
    from lmscale.tokenizer.train import find_trained

    found = find_trained(
        config.tokenizer, config.corpus.folder, list(config.corpus.sources), has_corpus=not awaits
    )
    if found is None:
        return Work(missing=(0,))
    imported = found.made_by.get("imported_from")
    return Work(note=f"{Path(config.tokenizer.folder)} holds an imported one" if imported else "")
