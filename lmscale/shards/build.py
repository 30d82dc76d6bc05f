"""Build datasets from the corpus: tokenise slices, then number and list the shards.

One process does it with others of its own, or the tasks of an array share it: the shards are the
same, byte for byte. Everything happens in ``SHARDS/<source>/.<split>.building``. There each
finished shard has a record with its size, hash and the place where the next begins, so a killed
build goes on where it was. The dataset's folder appears by one rename, whole.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lmscale.config import RunConfig
from lmscale.errors import DataError
from lmscale.files.atomic import writing
from lmscale.files.progress import progress
from lmscale.shards.datasets import (
    Dataset,
    DatasetPlan,
    existing_manifest,
    find_datasets_to_build,
    plan_dataset,
)
from lmscale.shards.finish import finish_dataset, is_assembled
from lmscale.shards.manifest import Manifest, load_manifest
from lmscale.shards.tasks import SliceTask, build_slice, is_slice_done
from lmscale.tasks.array_tasks import (
    ALONE,
    ArrayTask,
    Conclusion,
    Progress,
    conclude,
    raise_unfinished,
    read_progress,
    tidy,
)
from lmscale.tasks.processes import locked, run_tasks
from lmscale.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """One dataset's folder and manifest, and whether it was built now or found finished."""

    folder: Path
    manifest: Manifest
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class ShardsSummary:
    """What a build left in the folder of the shards."""

    datasets: tuple[DatasetSummary, ...]
    unfinished: dict[str, Conclusion]
    """Folders of datasets that wait for other tasks."""
    units_done: int
    """Slices that were tokenised now."""
    units_found: int
    """Slices of this task that were there."""


def build_shards(
    config: RunConfig, *, processes: int | None = None, force: bool = False
) -> tuple[DatasetSummary, ...]:
    """Build ``SHARDS/<source>/train`` and ``heldout`` for every source of the corpus.

    The shards are the same whatever the number of processes (``shards.processes`` by default).
    Datasets built before from the same are left as they are; built from others, they are a
    ``DataError`` unless ``force`` replaces them. A split without documents gets no dataset.
    """
    tokenizer = load_tokenizer(config.tokenizer.folder)
    datasets = find_datasets_to_build(config, tokenizer)
    found = _find_built(datasets, tokenizer, force=force, again=force)
    with ExitStack() as locks:
        with writing("shards", config.shards.folder):
            for dataset in datasets:
                if dataset.final not in found:
                    dataset.final.parent.mkdir(parents=True, exist_ok=True)
                    lock = dataset.final.with_name(f".{dataset.final.name}.lock")
                    locks.enter_context(locked(lock, f"{dataset.final}"))
                    _prepare(dataset, force)
        summary = _build(
            config, tokenizer, datasets, found, ALONE, processes=processes, force=force
        )
    raise_unfinished(summary.unfinished.values())
    return summary.datasets


def build_shards_task(
    config: RunConfig, task: ArrayTask, *, processes: int | None = None, force: bool = False
) -> ShardsSummary:
    """Do one task's share. The one that finds no other missing finishes the datasets.

    ``force`` replaces a dataset that was built from something else, and only that.
    """
    tokenizer = load_tokenizer(config.tokenizer.folder)
    datasets = find_datasets_to_build(config, tokenizer)
    found = _find_built(datasets, tokenizer, force=force, again=False)
    return _build(config, tokenizer, datasets, found, task, processes=processes, force=False)


def shards_progress(config: RunConfig, num_tasks: int) -> tuple[Progress, ...]:
    """How far each dataset is when built by ``num_tasks`` tasks. Changes nothing."""
    tokenizer = load_tokenizer(config.tokenizer.folder)
    datasets = find_datasets_to_build(config, tokenizer)
    built = _find_built(datasets, tokenizer, force=False, again=False, clean=False)
    return tuple(
        read_progress(dataset.build(), num_tasks, is_built=True)
        if dataset.final in built
        else read_progress(
            plan_dataset(dataset, tokenizer, keep=False).build, num_tasks, is_built=False
        )
        for dataset in datasets
    )


def _find_built(
    datasets: Sequence[Dataset],
    tokenizer: Tokenizer,
    *,
    force: bool,
    again: bool,
    clean: bool = True,
) -> dict[Path, DatasetSummary]:
    """Datasets that are finished. One made of something else is a problem unless ``force``.

    ``again`` finds none, so that all are built again. ``clean`` removes what a kill left of them.
    """
    found, problems = {}, []
    for dataset in datasets:
        manifest = existing_manifest(dataset, problems, force=force)
        if manifest is not None and not again:
            found[dataset.final] = DatasetSummary(
                folder=dataset.final, manifest=manifest, is_new=False
            )
            if clean and dataset.build().folder.exists():
                tidy(plan_dataset(dataset, tokenizer, keep=False).build)
    if problems:
        raise DataError(problems)
    return found


def _prepare(dataset: Dataset, force: bool) -> None:
    """A process alone clears away what it was killed in, or everything."""
    build = dataset.build()
    if force:
        shutil.rmtree(build.folder, ignore_errors=True)
    for torn in (build.work / "parts").glob(".*.tmp"):
        torn.unlink()


def _build(
    config: RunConfig,
    tokenizer: Tokenizer,
    datasets: Sequence[Dataset],
    found: dict[Path, DatasetSummary],
    task: ArrayTask,
    *,
    processes: int | None,
    force: bool,
) -> ShardsSummary:
    began = time.monotonic()
    plans = [plan_dataset(d, tokenizer, keep=True) for d in datasets if d.final not in found]
    mine = [slice_task for plan in plans for slice_task in _slice_tasks(config, plan, task)]
    to_do = [slice_task for slice_task in mine if not is_slice_done(slice_task)]
    if to_do:
        count = config.shards.processes if processes is None else processes
        total = sum(t.slice.end - t.slice.start for t in to_do)
        with progress("shards", total, "bytes") as advance:
            for slice_task, _ in run_tasks(build_slice, to_do, processes=count):
                advance(slice_task.slice.end - slice_task.slice.start)
    there, unfinished = dict(found), {}
    problems: list[str] = []  # one dataset's do not keep the others from being finished
    for plan in plans:
        final = plan.dataset.final
        try:
            with writing("shards", final):
                conclusion = conclude(
                    plan.build,
                    task,
                    report={"seconds": round(time.monotonic() - began, 3)},
                    is_built=(lambda: False) if force else partial(_is_built, plan.dataset),
                    finish=partial(finish_dataset, plan, tokenizer),
                )
        except DataError as error:
            problems += error.problems
            continue
        if conclusion.state == "already":
            tidy(plan.build)
        if conclusion.is_finished:
            is_new = conclusion.state == "finished"
            manifest = load_manifest(final)
            there[final] = DatasetSummary(folder=final, manifest=manifest, is_new=is_new)
        else:
            unfinished[str(final)] = conclusion
    if problems:
        raise DataError(problems)
    return ShardsSummary(
        datasets=tuple(there[d.final] for d in datasets if d.final in there),
        unfinished=unfinished,
        units_done=len(to_do),
        units_found=len(mine) - len(to_do),
    )


def _slice_tasks(config: RunConfig, plan: DatasetPlan, task: ArrayTask) -> list[SliceTask]:
    if is_assembled(plan):
        return []
    with writing("shards", plan.dataset.final):
        plan.parts.mkdir(exist_ok=True)
    return [
        SliceTask(
            slice=plan.slices[unit],
            documents=plan.dataset.documents,
            files=plan.dataset.files,
            parts=plan.parts,
            tokenizer_folder=Path(config.tokenizer.folder),
            rules=plan.dataset.rules,
        )
        for unit in plan.build.units_of(task)
    ]


def _is_built(dataset: Dataset) -> bool:
    return existing_manifest(dataset, [], force=True) is not None
