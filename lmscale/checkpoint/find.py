"""Which checkpoint a run goes on from: the newest one that is whole, finite, and of this run.

What is newer and cannot be taken is passed over, with the reason. Ranks that look together hear of
every finding of the others, so all of them take the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from lmscale.checkpoint.identity import describe_differences
from lmscale.checkpoint.layout import MANIFEST, FileEntry, Manifest, parse_manifest
from lmscale.checkpoint.place import Place
from lmscale.errors import CheckpointError, TransientError
from lmscale.runtime import heartbeat
from lmscale.runtime.atomic import may_pass
from lmscale.runtime.collectives import failing_together, gather_json
from lmscale.runtime.ranks import Ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint that can be resumed from."""

    place: Place
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.place.name_of(self.manifest.step)


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """A checkpoint that was not taken."""

    step: int
    name: str
    why: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Topology:
    """What decides which elements a rank holds: equal ones deal equally."""

    world_size: int
    zero_stage: int
    precision: str


class Search:
    """Iterates over the checkpoints that can be resumed from, newest first. All ranks together.

    ``places`` are looked at as one; of the same step in two, the earlier place's comes first. When
    one shows only after it was loaded that it is no good, ``reject`` it and go on iterating. Where
    nothing is left although something was saved, the iteration ends with a ``CheckpointError`` that
    has every reason, rather than that the run starts from scratch. What was undone does not count,
    nor what a node's own disk lacks. What cannot be read for a reason that may pass is not passed
    over: ``TransientError``.
    """

    def __init__(
        self,
        places: Sequence[Place],
        ranks: Ranks | None,
        *,
        identity: Mapping[str, Any] | None = None,
        undone: Callable[[Manifest], str | None] = lambda manifest: None,
        topology: Topology | None = None,
    ) -> None:
        """``ranks`` None: this process looks for itself alone, whatever others there are.

        ``identity``: the run's, which a manifest's must equal; None takes any. ``undone`` says why
        a checkpoint does not belong to the run's history any more, or None; only rank 0 is asked.
        ``topology``: this start's; without it, a checkpoint of which every node has only a part is
        not taken.
        """
        self._places = tuple(places)
        self._ranks = ranks or Ranks()
        self._is_alone = ranks is None
        self._identity = identity
        self._undone = undone
        self._topology = topology
        self._foreign: list[str] = []
        self._broken: list[str] = []
        self.passed_over: list[PassedOver] = []
        self._walking = self._walk()

    def __iter__(self) -> Iterator[Found]:
        return self

    def __next__(self) -> Found:
        return next(self._walking)

    def reject(self, found: Found, why: Sequence[str]) -> None:
        """Pass over what this search has given. All ranks, with the same reasons."""
        self._blame(found.place, found.manifest.step, why)

    def _walk(self) -> Iterator[Found]:
        self._gather(None)  # nobody looks while somebody still writes
        candidates = self._list()
        for step, place in candidates:
            manifest, problems = self._read(place, step)
            if manifest is not None and not problems:
                reasons = self._object(place, manifest)
                if reasons:
                    self._pass_over(place, step, reasons)
                    continue
                problems = self._verify(place, manifest)
            if manifest is not None and not problems:
                yield Found(place=place, manifest=manifest)
            else:
                self._blame(place, step, problems)
        if self._broken:
            locations = " and ".join(place.location for place in self._places)
            raise CheckpointError(
                [*self._broken, *self._foreign, _none_left(locations, len(candidates))]
            )
        if self._foreign:
            raise CheckpointError(
                [
                    *self._foreign,
                    "Give this run a folder of its own (run.folder), or set these back.",
                ]
            )

    def _list(self) -> list[tuple[int, Place]]:
        """(step, place), the newest first; the same on all ranks."""
        rows: list[tuple[int, int]] = []
        for index, place in enumerate(self._places):
            steps: list[int] = []
            with self._failing_together():
                if self._ranks.is_first or not place.is_shared:
                    steps = _list_steps(place)
            seen = {step for part in self._gather(steps) for step in part}
            rows += [(-step, index) for step in seen]
        return [(-step, self._places[index]) for step, index in sorted(rows)]

    def _read(self, place: Place, step: int) -> tuple[Manifest | None, list[str]]:
        """A checkpoint's manifest, and what any rank finds wrong with it."""
        manifest, problems = None, []
        with self._failing_together():
            try:
                manifest = load_manifest(place, step)
            except CheckpointError as error:
                problems = list(error.problems)
        heartbeat.tick()
        views = self._gather([None if manifest is None else manifest.hash, problems])
        problems = list(dict.fromkeys(problem for _, found in views for problem in found))
        if len({seen for seen, _ in views}) > 1 and not problems:
            problems.append(f"{place.name_of(step)} does not look the same to all ranks.")
        if manifest is not None and not manifest.is_finite:
            problems.append(f"{place.name_of(step)} holds weights that are not finite.")
        return manifest, problems

    def _object(self, place: Place, manifest: Manifest) -> list[str]:
        """Why a sound manifest is not of this run, or not of its history."""
        name = place.name_of(manifest.step)
        if self._identity is not None:
            foreign = describe_differences(manifest.identity, self._identity, where=name)
            if foreign:
                if place.is_shared:
                    self._foreign = self._foreign or foreign
                return foreign
        reasons = self._gather(self._undone(manifest) if self._ranks.is_first else None)
        return [f"{name}: {reasons[0]}"] if reasons[0] else []

    def _verify(self, place: Place, manifest: Manifest) -> list[str]:
        """What any rank finds wrong with the files; each looks at a part of them."""
        ranks, step, files = self._ranks, manifest.step, manifest.files
        if place.is_shared:
            share: Sequence[FileEntry] = files[ranks.rank :: ranks.world_size]
        else:
            own = self._own_file(manifest)
            has_all = all(place.holds(step, entry) for entry in files)
            has_own = own is not None and place.holds(step, own)
            views = self._gather([has_all, has_own])
            if all(all_are for all_are, _ in views):
                share = files[ranks.local_rank :: ranks.local_world_size]
            elif own is not None and all(own_is for _, own_is in views):
                share = (own,)
            else:
                return [
                    f"{place.name_of(step)}: its files are on several nodes' own disks, and not "
                    "every rank finds what it needs on its node."
                ]
        problems: list[str] = []
        with self._failing_together():
            problems = find_damage(place, step, share)
        return sorted({problem for found in self._gather(problems) for problem in found})

    def _own_file(self, manifest: Manifest) -> FileEntry | None:
        """The only one that this rank reads, where it holds, and shares, what its writer did."""
        if self._topology is None:
            return None
        if any(manifest.written_by.get(k) != v for k, v in asdict(self._topology).items()):
            return None
        rank = f"rank-{self._ranks.rank:05d}"
        return next((e for e in manifest.files if e.name.partition(".")[0] == rank), None)

    def _blame(self, place: Place, step: int, why: Sequence[str]) -> None:
        """Pass over what should be good; a node's own disk is no place to rely on."""
        if place.is_shared:
            self._broken += why
        self._pass_over(place, step, why)

    def _pass_over(self, place: Place, step: int, why: Sequence[str]) -> None:
        self.passed_over.append(PassedOver(step=step, name=place.name_of(step), why=tuple(why)))
        for problem in why:
            logger.warning("checkpoint of step %d passed over: %s", step, problem)

    def _gather(self, value: Any) -> list[Any]:
        return [value] if self._is_alone else gather_json(value)

    def _failing_together(self) -> AbstractContextManager[None]:
        return nullcontext() if self._is_alone else failing_together()


def _list_steps(place: Place) -> list[int]:
    try:
        return place.list_steps()
    except OSError as error:
        kind = TransientError if may_pass(error) else CheckpointError
        raise kind(f"The checkpoints in {place.location} cannot be listed: {error}.") from error


def load_manifest(place: Place, step: int) -> Manifest:
    """The manifest of one step. Raises ``CheckpointError`` when it is not there or not readable."""
    path = f"{place.name_of(step)}/{MANIFEST}"
    try:
        manifest = parse_manifest(place.read_manifest(step), path)
        if manifest.step != step:
            raise CheckpointError(
                f"{path} is the manifest of step {manifest.step}: somebody has renamed its folder."
            )
        return manifest
    except FileNotFoundError:
        known = ", ".join(map(str, place.list_steps())) or "none"
        raise CheckpointError(
            f"{place.location} has no checkpoint of step {step}. There are: {known}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        # Not passed over for an older one: this one may be whole.
        kind = TransientError if may_pass(error) else CheckpointError
        raise kind(f"{path} cannot be read: {error}.") from None


def find_damage(place: Place, step: int, files: Iterable[FileEntry]) -> list[str]:
    """What is wrong with these files: missing, of another size, of another hash.

    Raises ``TransientError`` when one cannot be read for a reason that may pass.
    """
    problems = []
    for entry in files:
        try:
            problem = place.describe_damage(step, entry)
        except OSError as error:
            if may_pass(error):
                raise TransientError(
                    f"{place.name_of(step)}/{entry.name} cannot be read: {error}."
                ) from error
            problem = f"{place.name_of(step)}/{entry.name} cannot be read: {error}"
        heartbeat.tick()
        if problem is not None:
            problems.append(problem)
    return problems


def find_resumable(place: Place, ranks: Ranks) -> Manifest | None:
    """The newest checkpoint that verifies and is finite, or None where none was ever committed.

    All ranks call this together.
    """
    found = next(Search([place], ranks), None)
    return None if found is None else found.manifest


def find_sound(
    place: Place, undone: Callable[[Manifest], str | None] = lambda manifest: None
) -> Manifest | None:
    """The same for one process alone, such as an evaluation; it hashes everything itself."""
    found = next(Search([place], None, undone=undone), None)
    return None if found is None else found.manifest


def _none_left(locations: str, count: int) -> str:
    return (
        f"None of the {count} checkpoints in {locations} can be used. Restore one, or move "
        "the folder away to start the run from the beginning."
    )
