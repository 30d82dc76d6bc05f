"""Build folders, by one process or by the tasks of an array, with the same bytes as the result.

targets ──→ find the finished ones ──→ do this task's units ──→ leave a marker
                                                                    │ all markers there
                                   summary ←── swap the folder in ←─┘ (one task, by a lock)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from lmscale.errors import DataError
from lmscale.files.atomic import writing
from lmscale.files.locks import locked_file
from lmscale.files.meter import metered
from lmscale.files.progress import BYTES, progress
from lmscale.tasks.finishing import (
    Built,
    Progress,
    Unfinished,
    conclude,
    discard_empty,
    is_assembled,
    read_progress,
    tidy,
)
from lmscale.tasks.processes import locked, run_tasks
from lmscale.tasks.target import ALONE, ArrayTask, ManifestT, Target, Unit


@dataclass(frozen=True, kw_only=True)
class BuildSummary(Generic[ManifestT]):
    """What a call did, and which targets wait for other tasks, by name."""

    built: Mapping[str, Built[ManifestT]]
    unfinished: Mapping[str, Unfinished]
    units_done: int  # by this call
    units_found: int  # of this task, done by an earlier call


@dataclass(frozen=True, kw_only=True)
class Builder(Generic[ManifestT]):
    """Builds targets. ``title`` is for the progress bar; ``check`` raises ``DataError`` for what
    can be told of the units that are left to do, before any of them is begun.
    """

    targets: Sequence[Target[ManifestT]]
    title: str
    processes: int
    check: Callable[[Sequence[Any]], None] = lambda units: None

    def build(self, task: ArrayTask | None, *, force: bool) -> BuildSummary[ManifestT]:
        """Build alone (None), or do one task's share; the last task finishes the targets.

        A target that was built before from the same is left as it is; built from something else it
        is a ``DataError``, unless ``force`` replaces it. Alone, ``force`` builds again whatever is
        there. What a killed build has finished is used.
        """
        if task is not None:
            return self._build(self._find_built(force=force), task, force=False)
        built = self._find_built(force=force, clean=not force)
        if force:
            built = {}  # the leftovers go under the lock, with everything else
        with ExitStack() as alone:
            for target in self.targets:
                if target.name not in built:
                    alone.enter_context(_held_alone(target, force=force))
            summary = self._build(built, ALONE, force=force)
        if summary.unfinished:
            raise DataError(
                [
                    f"{each.progress.target.final} is being finished by {each.holder}. "
                    "Wait until it is there, or stop that one, and run the same command again."
                    for each in summary.unfinished.values()
                ]
            )
        return summary

    def progress(self, num_tasks: int) -> tuple[Progress, ...]:
        """How far each target is when built by ``num_tasks`` tasks. Changes nothing."""
        built = self._find_built(force=False, clean=False)
        return tuple(
            Progress(target=target, num_tasks=num_tasks, is_built=True)
            if target.name in built
            else read_progress(target.planned(keep=False), num_tasks)
            for target in self.targets
        )

    def _find_built(self, *, force: bool, clean: bool = True) -> dict[str, Built[ManifestT]]:
        """Targets that are finished; ``clean`` removes what a kill left of their builds.

        Raises ``DataError`` for all that were built from something else, unless ``force``.
        """
        built, problems = {}, []
        for target in self.targets:
            with writing(target.what, target.final.parent):
                try:
                    manifest = target.load_built(force=force)
                except DataError as error:
                    problems += error.problems
                    continue
                if manifest is not None:
                    built[target.name] = Built(folder=target.final, manifest=manifest, is_new=False)
                    if clean and target.folder.exists():
                        # What a `build --force` makes at the moment is left alone.
                        with suppress(BlockingIOError), locked_file(_lock_path(target), 0):
                            tidy(target.planned(keep=False))
        if problems:
            raise DataError(problems)
        return built

    def _build(
        self, built: Mapping[str, Built[ManifestT]], task: ArrayTask, *, force: bool
    ) -> BuildSummary[ManifestT]:
        began = time.monotonic()
        missing = [t.planned(keep=True) for t in self.targets if t.name not in built]
        shares = [target.units_of(task) for target in missing if not is_assembled(target)]
        units = [unit for share in shares for unit in share]
        to_do = [unit for unit in units if not unit.is_done()]
        if to_do:
            self.check(to_do)
            total = sum(unit.bytes for unit in to_do)
            with progress(self.title, total, BYTES) as advance, metered(total, advance):
                for _ in run_tasks(_do, to_do, processes=self.processes):
                    pass
        ends: dict[str, Built[ManifestT] | Unfinished] = dict(built)
        problems: list[str] = []  # one target's do not keep the others from being finished
        for target in missing:
            seconds = time.monotonic() - began
            try:
                with writing(target.what, target.final.parent):
                    ends[target.name] = conclude(
                        target, task, seconds=seconds, processes=self.processes, force=force
                    )
            except DataError as error:
                problems += error.problems
        if problems:
            raise DataError(problems)
        in_order = {target.name: ends[target.name] for target in self.targets}
        return BuildSummary(
            built={name: end for name, end in in_order.items() if isinstance(end, Built)},
            unfinished={name: end for name, end in in_order.items() if isinstance(end, Unfinished)},
            units_done=len(to_do),
            units_found=len(units) - len(to_do),
        )


def _do(unit: Unit) -> None:
    with metered(unit.bytes):
        unit.do()


def _lock_path(target: Target[Any]) -> Path:
    return target.final.with_name(f".{target.final.name}.lock")


@contextmanager
def _held_alone(target: Target[Any], *, force: bool) -> Iterator[None]:
    """Lock a target for this process alone, and clear away what a kill has torn, or everything.

    A build that fails before any unit is finished leaves no trace.
    """
    with ExitStack() as locks:
        with writing(target.what, target.final.parent):
            target.final.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(locked(_lock_path(target), f"{target.final}"))
            if force:
                shutil.rmtree(target.folder, ignore_errors=True)
            for torn in target.parts.glob(".*.tmp"):
                torn.unlink()
        try:
            yield
        except BaseException:
            if all(path.name.startswith(".") for path in target.parts.glob("*")):
                shutil.rmtree(target.parts, ignore_errors=True)
                discard_empty(target.folder)
            raise
