"""Build the corpus: clean each part of each source, take duplicates out, swap the result in.

One process does it all, or the tasks of an array share it: the documents, their order and their
files are the same. ``lmscale.tasks.array_tasks`` says how tasks know of each other.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lmscale.config.data import CorpusConfig
from lmscale.corpus.documents import CorpusManifest, load_corpus_manifest
from lmscale.corpus.finish import finish_source, is_assembled
from lmscale.corpus.inputs import find_inputs
from lmscale.corpus.parts import PartTask, clean_part, load_part
from lmscale.corpus.plan import SourcePlan, made_by, plan_source
from lmscale.errors import ConfigError, DataError
from lmscale.files.atomic import have_sizes, writing
from lmscale.files.progress import progress
from lmscale.tasks.array_tasks import (
    ALONE,
    ArrayTask,
    Conclusion,
    Progress,
    conclude,
    discard_empty,
    raise_unfinished,
    read_progress,
    tidy,
)
from lmscale.tasks.processes import locked, run_tasks


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """One source's manifest, and whether it was built now or found finished."""

    manifest: CorpusManifest
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """What a build left in the corpus folder."""

    folder: Path
    sources: dict[str, SourceSummary]
    unfinished: dict[str, Conclusion]
    """Sources that wait for other tasks."""
    units_done: int
    """Parts that were cleaned now."""
    units_found: int
    """Parts of this task that were there."""


def build_corpus(config: CorpusConfig, *, processes: int = 1, force: bool = False) -> CorpusSummary:
    """Build every source that is not built yet; 0 processes means one per core.

    A source built before from the same settings and raw files is left as it is; one built from
    others is a ``DataError`` unless ``force`` rebuilds it. A source appears whole or not at all.
    What a killed build has finished is used.
    """
    plans = _plan(config)
    found = _find_built(plans, force=force, again=force)
    missing = [plan for plan in plans if plan.name not in found]
    with ExitStack() as locks:
        for plan in missing:
            final = plan.build.final
            with writing(f"the documents of source {plan.name}", final.parent):
                final.parent.mkdir(parents=True, exist_ok=True)
                what = f"the corpus of source {plan.name}"
                locks.enter_context(locked(final.with_name(f".{final.name}.lock"), what))
                if force:
                    shutil.rmtree(plan.build.folder, ignore_errors=True)
        try:
            summary = _build(config, plans, found, ALONE, processes=processes, force=force)
        except BaseException:
            for plan in missing:
                _discard_empty(plan)
            raise
    raise_unfinished(summary.unfinished.values())
    return summary


def build_corpus_task(
    config: CorpusConfig, task: ArrayTask, *, processes: int = 1, force: bool = False
) -> CorpusSummary:
    """Do one task's share. The one that finds no other missing finishes the sources.

    ``force`` replaces a source that was built from something else, and only that.
    """
    plans = _plan(config)
    found = _find_built(plans, force=force, again=False)
    return _build(config, plans, found, task, processes=processes, force=False)


def corpus_progress(config: CorpusConfig, num_tasks: int) -> tuple[Progress, ...]:
    """How far each source is when built by ``num_tasks`` tasks. Changes nothing."""
    plans = _plan(config)
    built = _find_built(plans, force=False, again=False, clean=False)
    return tuple(read_progress(p.build, num_tasks, is_built=p.name in built) for p in plans)


def _plan(config: CorpusConfig) -> list[SourcePlan]:
    if not config.sources:
        raise ConfigError("corpus.sources: names no source; give at least one with its inputs.")
    inputs = find_inputs(config.sources)
    return [
        plan_source(config, name, files, rank=rank)
        for rank, (name, files) in enumerate(inputs.items())
    ]


def _find_built(
    plans: Sequence[SourcePlan], *, force: bool, again: bool, clean: bool = True
) -> dict[str, SourceSummary]:
    """Sources that are finished. One made of something else is a problem unless ``force``.

    ``again`` finds none, so that all are built again. ``clean`` removes what a kill left of them.
    """
    found, problems = {}, []
    for plan in plans:
        with writing("the corpus", plan.build.final.parent):
            manifest = _existing(plan, problems, force=force)
            if manifest is not None and not again:
                found[plan.name] = SourceSummary(manifest=manifest, is_new=False)
                if clean:
                    _tidy(plan)
    if problems:
        raise DataError(problems)
    return found


def _existing(plan: SourcePlan, problems: list[str], *, force: bool) -> CorpusManifest | None:
    """The manifest of an earlier build of the same; one of something else is a problem."""
    folder = plan.build.final
    if not folder.exists():
        return None
    try:
        manifest = load_corpus_manifest(folder)
    except DataError:
        problems.append(
            f"{folder} exists and holds no corpus of lmscale. Name another corpus.folder, or move "
            "it away."
        )
        return None
    if manifest.key == plan.build.key:
        return manifest if _is_whole(folder, manifest) else None
    if force:
        return None
    wanted = made_by(plan.config, plan.name)
    changed = sorted(key for key in wanted if manifest.made_by.get(key) != wanted[key])
    what = (
        f"other settings ({', '.join(changed)})" if changed else "raw files that have changed since"
    )
    problems.append(
        f"{folder} was built from {what}. Rebuild it with --force, or name another corpus.folder."
    )
    return None


def _is_whole(folder: Path, manifest: CorpusManifest) -> bool:
    """Where a file is lost, the source is built again."""
    return have_sizes(
        (folder / split / f.name, f.bytes) for split, rows in manifest.splits.items() for f in rows
    )


def _is_built(plan: SourcePlan) -> bool:
    return _existing(plan, [], force=True) is not None


def _tidy(plan: SourcePlan) -> None:
    tidy(plan.build, [plan.folder / part.key for part in plan.parts])


def _discard_empty(plan: SourcePlan) -> None:
    """A build that failed before any part was finished leaves no trace."""
    parts = plan.folder
    if parts.is_dir() and any(not path.name.startswith(".") for path in parts.iterdir()):
        return
    shutil.rmtree(parts, ignore_errors=True)
    discard_empty(plan.build.folder)


def _build(
    config: CorpusConfig,
    plans: Sequence[SourcePlan],
    found: dict[str, SourceSummary],
    task: ArrayTask,
    *,
    processes: int,
    force: bool,
) -> CorpusSummary:
    began = time.monotonic()
    missing = [plan for plan in plans if plan.name not in found]
    mine = [
        PartTask(source=plan.name, config=config, part=plan.parts[unit], folder=plan.folder)
        for plan in missing
        if not is_assembled(plan)
        for unit in plan.build.units_of(task)
    ]
    to_do = [job for job in mine if load_part(job.folder / job.part.key) is None]
    if to_do:
        with progress("corpus", sum(job.part.bytes for job in to_do), "raw bytes") as advance:
            for job, _ in run_tasks(clean_part, to_do, processes=processes):
                advance(job.part.bytes)
    sources, unfinished = dict(found), {}
    problems: list[str] = []  # one source's do not keep the others from being finished
    for plan in missing:
        try:
            conclusion = conclude(
                plan.build,
                task,
                report={"seconds": round(time.monotonic() - began, 3)},
                is_built=(lambda: False) if force else partial(_is_built, plan),
                finish=partial(finish_source, plan, processes=processes),
            )
        except DataError as error:
            problems += error.problems
            continue
        if conclusion.state == "already":
            _tidy(plan)
        if conclusion.is_finished:
            manifest = load_corpus_manifest(plan.build.final)
            is_new = conclusion.state == "finished"
            sources[plan.name] = SourceSummary(manifest=manifest, is_new=is_new)
        else:
            unfinished[plan.name] = conclusion
    if problems:
        raise DataError(problems)
    return CorpusSummary(
        folder=Path(config.folder),
        sources={name: sources[name] for name in config.sources if name in sources},
        unfinished=unfinished,
        units_done=len(to_do),
        units_found=len(mine) - len(to_do),
    )
