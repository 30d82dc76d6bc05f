"""Build folders, by one process or by the tasks of an array, with the same bytes as the result.

targets ──→ find the finished ones ──→ do this task's units ──→ leave a marker
                                                                    │ all markers there
                                   summary ←── swap the folder in ←─┘ (one task, by a lock)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from lmscale.errors import DataError
from lmscale.files.atomic import writing
from lmscale.files.locks import locked_file
from lmscale.files.progress import progress
from lmscale.tasks.array_tasks import (
    ALONE,
    ArrayTask,
    Progress,
    SharedBuild,
    read_progress,
    remove_marker,
    write_marker,
)
from lmscale.tasks.finishing import discard_empty, finish, is_assembled, tidy
from lmscale.tasks.processes import locked, run_tasks
from lmscale.tasks.takeover import Turn, holder_of, take_turn
from lmscale.tasks.target import ManifestT, Target, Unit, UnitsMissing, existing_manifest

T = TypeVar("T", bound=Target[Any])


@dataclass(frozen=True, kw_only=True)
class Built(Generic[ManifestT]):
    """A finished folder, and whether this call finished it or found it finished."""

    folder: Path
    manifest: ManifestT
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What became of a build when a task had done its units."""

    state: Literal["finished", "already", "waiting", "elsewhere"]
    progress: Progress
    holder: str = ""  # elsewhere: who finishes it


@dataclass(frozen=True, kw_only=True)
class BuildSummary(Generic[ManifestT]):
    """What a call did, and which targets wait for other tasks, by name."""

    built: Mapping[str, Built[ManifestT]]
    unfinished: Mapping[str, Conclusion]
    units_done: int
    """Units of work done by this call."""
    units_found: int
    """Units of this task that an earlier call had done."""


@dataclass(frozen=True, kw_only=True)
class Builder(Generic[ManifestT]):
    """Builds targets. ``title`` and ``unit`` are for the progress bar."""

    targets: Sequence[Target[ManifestT]]
    title: str
    unit: str
    processes: int

    def build(self, task: ArrayTask | None, *, force: bool) -> BuildSummary[ManifestT]:
        """Build alone (None), or do one task's share; the last task finishes the targets.

        A target that was built before from the same is left as it is; built from something else it
        is a ``DataError``, unless ``force`` replaces it. Alone, ``force`` builds again whatever is
        there. What a killed build has finished is used.
        """
        if task is not None:
            return self._build(self.find_built(force=force), task, force=False)
        built = self.find_built(force=force, clean=not force)
        if force:
            built = {}  # the leftovers go under the lock, with everything else
        missing = [target for target in self.targets if target.name not in built]
        with ExitStack() as locks:
            for target in missing:
                _prepare(target, locks, force=force)
            try:
                summary = self._build(built, ALONE, force=force)
            except BaseException:
                for target in missing:
                    _discard_if_nothing_done(target)
                raise
        if summary.unfinished:
            raise DataError(
                [
                    f"{conclusion.progress.build.final} is being finished by {conclusion.holder}. "
                    "Wait until it is there, or stop that one, and run the same command again."
                    for conclusion in summary.unfinished.values()
                ]
            )
        return summary

    def progress(self, num_tasks: int) -> tuple[Progress, ...]:
        """How far each target is when built by ``num_tasks`` tasks. Changes nothing."""
        built = self.find_built(force=False, clean=False)
        return tuple(
            read_progress(target.build, num_tasks, is_built=True)
            if target.name in built
            else read_progress(target.planned(keep=False).build, num_tasks, is_built=False)
            for target in self.targets
        )

    def find_built(self, *, force: bool, clean: bool = True) -> dict[str, Built[ManifestT]]:
        """Targets that are finished; ``clean`` removes what a kill left of their builds.

        Raises ``DataError`` for all that were built from something else, unless ``force``.
        """
        built, problems = {}, []
        for target in self.targets:
            build = target.build
            with writing(target.what, build.final.parent):
                manifest = existing_manifest(target, problems, force=force)
                if manifest is not None:
                    built[target.name] = Built(folder=build.final, manifest=manifest, is_new=False)
                    if clean and build.folder.exists():
                        _tidy_unless_building(target.planned(keep=False))
        if problems:
            raise DataError(problems)
        return built

    def _build(
        self, built: Mapping[str, Built[ManifestT]], task: ArrayTask, *, force: bool
    ) -> BuildSummary[ManifestT]:
        began = time.monotonic()
        missing = [t.planned(keep=True) for t in self.targets if t.name not in built]
        units = [
            unit
            for target in missing
            if not is_assembled(target.build)
            for unit in target.units(target.build.units_of(task))
        ]
        to_do = [unit for unit in units if not unit.is_done()]
        if to_do:
            with progress(self.title, sum(unit.bytes for unit in to_do), self.unit) as advance:
                for unit, _ in run_tasks(_do, to_do, processes=self.processes):
                    advance(unit.bytes)
        built, unfinished = dict(built), {}
        problems: list[str] = []  # one target's do not keep the others from being finished
        for target in missing:
            try:
                with writing(target.what, target.build.final.parent):
                    conclusion = conclude(
                        target.build,
                        task,
                        report={"seconds": round(time.monotonic() - began, 3)},
                        is_built=(lambda: False) if force else partial(_is_built, target),
                        finish=partial(finish, target, self.processes),
                    )
            except DataError as error:
                problems += error.problems
                continue
            if conclusion.state == "already":
                _tidy(target)
            if conclusion.state in ("finished", "already"):
                built[target.name] = Built(
                    folder=target.build.final,
                    manifest=target.load(target.build.final),
                    is_new=conclusion.state == "finished",
                )
            else:
                unfinished[target.name] = conclusion
        if problems:
            raise DataError(problems)
        return BuildSummary(
            built={t.name: built[t.name] for t in self.targets if t.name in built},
            unfinished=unfinished,
            units_done=len(to_do),
            units_found=len(units) - len(to_do),
        )


def conclude(
    build: SharedBuild,
    task: ArrayTask,
    *,
    report: dict[str, Any],
    is_built: Callable[[], bool],
    finish: Callable[[Turn], object],
) -> Conclusion:
    """Leave the task's marker, and if no task is missing, finish the build.

    ``finish`` makes ``build.final`` out of ``build.folder``. It may be called again after a kill at
    any point, and calls ``Turn.check`` before what cannot be undone. One process calls it at a
    time; a process that is taken for dead although it lives does the same things over again.
    """
    if build.units_of(task):
        try:
            write_marker(build, task, report)
        except FileNotFoundError:
            if not is_built():  # else a second copy of this task has removed the folder
                raise
    progress = read_progress(build, task.count, is_built=False)
    if not progress.expected <= progress.ended:
        return Conclusion(state="already" if is_built() else "waiting", progress=progress)
    with take_turn(build.folder / "finisher") as turn:
        if is_built():  # since this task looked
            return Conclusion(state="already", progress=progress)
        if turn is None:
            holder = holder_of(build.folder / "finisher")
            return Conclusion(state="elsewhere", progress=progress, holder=holder)
        try:
            finish(turn)
        except UnitsMissing as missing:
            raise _lost(build, task.count, missing.units) from None
    shutil.rmtree(build.folder, ignore_errors=True)  # also what other settings left there
    return Conclusion(state="finished", progress=progress)


def _lost(build: SharedBuild, num_tasks: int, units: Sequence[int]) -> DataError:
    owners = build.owners(num_tasks)
    tasks = sorted({owners[unit] for unit in units})
    for number in tasks:
        remove_marker(build, ArrayTask(number, num_tasks))
    again = "the command" if num_tasks == 1 else f"task {', '.join(map(str, tasks))} of {num_tasks}"
    return DataError(
        f"{build.folder}: {len(units)} of {len(build.sizes)} pieces of work are not there or not "
        f"whole, though the task that made them had ended. Run {again} again."
    )


def _do(unit: Unit) -> None:
    unit.do()


def _is_built(target: Target[Any]) -> bool:
    return existing_manifest(target, [], force=True) is not None


def _tidy(target: Target[Any]) -> None:
    tidy(target.build, target.leftovers)


def _tidy_unless_building(target: Target[Any]) -> None:
    """Tidy, but leave alone what a ``build --force`` is making at the moment."""
    # False, no locks: _prepare refuses there, so that nobody builds alone.
    with suppress(BlockingIOError), locked_file(_lock_path(target.build), 0):
        _tidy(target)


def _lock_path(build: SharedBuild) -> Path:
    return build.final.with_name(f".{build.final.name}.lock")


def _prepare(target: Target[Any], locks: ExitStack, *, force: bool) -> None:
    """Lock a target for this process alone, and clear away what a kill has torn, or everything."""
    build = target.build
    with writing(target.what, build.final.parent):
        build.final.parent.mkdir(parents=True, exist_ok=True)
        locks.enter_context(locked(_lock_path(build), f"{build.final}"))
        if force:
            shutil.rmtree(build.folder, ignore_errors=True)
        for torn in target.parts.glob(".*.tmp"):
            torn.unlink()


def _discard_if_nothing_done(target: Target[Any]) -> None:
    """Leave no trace of a build that failed before any unit was finished."""
    if not any(not path.name.startswith(".") for path in target.parts.glob("*")):
        shutil.rmtree(target.parts, ignore_errors=True)
        discard_empty(target.build.folder)
