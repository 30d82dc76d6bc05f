"""Which checkpoint a run goes on from: the newest one that is whole, finite, and of this run.

What is newer and cannot be taken is passed over, with the reason. Ranks that look together hear of
every finding of the others, so all of them take the same one.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lmscale.checkpoint.differences import describe_differences
from lmscale.checkpoint.layout import MANIFEST
from lmscale.checkpoint.manifest import FileEntry, Manifest, parse_manifest
from lmscale.checkpoint.places.place import Place
from lmscale.errors import CheckpointError, RefusedError, TransientError
from lmscale.files.remote import Result, call_patiently
from lmscale.ranks.collectives import failing_together, gather_json
from lmscale.ranks.ranks import Ranks
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)

# How long to wait before each further attempt at a file that cannot be read.
WAITS_SECONDS = (1.0, 4.0, 10.0)
# What shows that there is no such file.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
# What no other start will mend, and what says nothing of the file.
_REFUSED = {errno.EACCES, errno.EPERM}
# What a file system says of a bad place on its disk, and a network's of a server that is away.
_BAD_DISK = {errno.EIO, errno.EUCLEAN, errno.EBADMSG}

Undone = Callable[[Manifest], str | None]  # why it is not of the run's history any more, or None


def nothing_undone(manifest: Manifest) -> str | None:
    return None


class BadDiskError(CheckpointError):
    """A file of a checkpoint fails whenever it is read."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
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


class Search:
    """Iterates over the checkpoints that can be resumed from, newest first. All ranks together.

    ``places`` are looked at as one; of the same step in two, the earlier place's comes first. What
    shows only after it was loaded that it is no good, ``reject``. Where nothing is left although
    something was saved, the iteration ends with a ``CheckpointError`` that has every reason: no run
    starts from scratch for it. What was undone does not count, nor what a node's own disk lacks.

    Passed over is only what shows that it is no good: a file that is missing, of another size or
    hash, or that fails whenever it is read. One that may not be read is a ``CheckpointError``, and
    any other failure a ``TransientError``: the newest may be whole.
    """

    def __init__(
        self,
        places: Sequence[Place],
        ranks: Ranks,
        *,
        identity: Mapping[str, Any] | None = None,
        undone: Undone = nothing_undone,
        topology: Mapping[str, Any] | None = None,
    ) -> None:
        """``identity``: the run's, which a manifest's must equal; None takes any. Only rank 0 is
        asked what is undone. ``topology``: what decides which elements a rank of this start holds,
        as ``written_by`` has it; without it, a checkpoint of which every node has only a part is
        not taken.
        """
        self._places = tuple(places)
        self._ranks = ranks
        self._identity = identity
        self._undone = undone
        self._topology = topology
        self._foreign: list[str] = []
        self._broken: list[str] = []
        self._is_disk_bad = False  # of any of the broken ones
        self.passed_over: list[PassedOver] = []
        self._walking = self._walk()

    def __iter__(self) -> Iterator[Candidate]:
        return self

    def __next__(self) -> Candidate:
        return next(self._walking)

    def reject(self, candidate: Candidate, why: Sequence[str]) -> None:
        """Pass over what this search has given. All ranks, with the same reasons."""
        self._blame(candidate.place, candidate.manifest.step, why)

    def _walk(self) -> Iterator[Candidate]:
        gather_json(None)  # nobody looks while somebody still writes
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
                yield Candidate(place=place, manifest=manifest)
            else:
                self._blame(place, step, problems)
        if self._broken:
            locations = " and ".join(place.location for place in self._places)
            # A file system that fails altogether comes back.
            kind = TransientError if self._is_disk_bad else CheckpointError
            none_left = (
                f"None of the {len(candidates)} checkpoints in {locations} can be used. Restore "
                "one, or move the folder away to start the run from the beginning."
            )
            raise kind([*self._broken, *self._foreign, none_left])
        if self._foreign:
            advice = "Give this run a folder of its own (run.folder), or set these back."
            raise CheckpointError([*self._foreign, advice])

    def _list(self) -> list[tuple[int, Place]]:
        """(step, place), the newest first; the same on all ranks."""
        rows: list[tuple[int, int]] = []
        for index, place in enumerate(self._places):
            steps: list[int] = []
            with failing_together():
                if self._ranks.is_first or not place.is_shared:
                    steps = _list_steps(place)
            seen = {step for part in gather_json(steps) for step in part}
            rows += [(-step, index) for step in seen]
        return [(-step, self._places[index]) for step, index in sorted(rows)]

    def _read(self, place: Place, step: int) -> tuple[Manifest | None, list[str]]:
        """A checkpoint's manifest, and what any rank finds wrong with it."""
        manifest, problems, is_disk_bad = None, [], False
        with failing_together():
            try:
                manifest = load_manifest(place, step)
            except RefusedError:
                raise
            except CheckpointError as error:
                problems, is_disk_bad = list(error.problems), isinstance(error, BadDiskError)
        heartbeat.tick()
        views = gather_json([manifest and manifest.hash, problems, is_disk_bad])
        self._is_disk_bad |= place.is_shared and any(is_bad for *_, is_bad in views)
        problems = list(dict.fromkeys(problem for _, of_rank, _ in views for problem in of_rank))
        if len({seen for seen, *_ in views}) > 1 and not problems:
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
        reasons = gather_json(self._undone(manifest) if self._ranks.is_first else None)
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
            views = gather_json([has_all, has_own])
            if all(all_are for all_are, _ in views):
                share = files[ranks.local_rank :: ranks.local_world_size]
            elif own is not None and all(own_is for _, own_is in views):
                share = (own,)
            else:
                return [
                    f"{place.name_of(step)}: its files are on several nodes' own disks, and not "
                    "every rank finds what it needs on its node."
                ]
        damage: list[tuple[str, bool]] = []
        with failing_together():
            damage = list(_look_for_damage(place, step, share))
        damages = [row for rows in gather_json(damage) for row in rows]
        self._is_disk_bad |= place.is_shared and any(is_bad for _, is_bad in damages)
        return sorted({problem for problem, _ in damages})

    def _own_file(self, manifest: Manifest) -> FileEntry | None:
        """The only one that this rank reads, where it holds, and shares, what its writer did."""
        if self._topology is None or not self._topology.items() <= manifest.written_by.items():
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


def _list_steps(place: Place) -> list[int]:
    try:
        return _call_patiently(place.list_steps)
    except OSError as error:
        kind = TransientError
        if error.errno in _REFUSED | _ABSENT:
            kind = RefusedError if error.errno in _REFUSED else CheckpointError
        raise kind(f"The checkpoints in {place.location} cannot be listed: {error}.") from error


def load_manifest(place: Place, step: int) -> Manifest:
    """The manifest of one step.

    Raises ``CheckpointError`` when it is not there, is not one, or cannot be read whenever it is
    tried; its subclass ``RefusedError`` when it may not be read; else ``TransientError``.
    """
    path = f"{place.name_of(step)}/{MANIFEST}"
    try:
        text = _read_patiently(lambda: place.read_manifest(step), path)
    except FileNotFoundError:
        steps = ", ".join(map(str, _list_steps(place))) or "none"
        raise CheckpointError(
            f"{place.location} has no checkpoint of step {step}. There are: {steps}."
        ) from None
    except BadDiskError:
        raise
    except CheckpointError as error:  # a store's too: such as that the credentials are not good
        raise RefusedError(error.problems) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    manifest = parse_manifest(text, path)
    if manifest.step != step:
        raise CheckpointError(
            f"{path} is the manifest of step {manifest.step}: somebody has renamed its folder."
        )
    return manifest


def find_damage(place: Place, step: int, files: Iterable[FileEntry]) -> list[str]:
    """What is wrong with these files: missing, of another size, of another hash, on a bad disk.

    Raises ``CheckpointError`` when one may not be read, and ``TransientError`` when it cannot be
    for any other reason.
    """
    return [problem for problem, _ in _look_for_damage(place, step, files)]


def _look_for_damage(
    place: Place, step: int, files: Iterable[FileEntry]
) -> Iterator[tuple[str, bool]]:
    """(what is wrong with a file, whether it is that the disk does not give it)."""
    for entry in files:
        path = f"{place.name_of(step)}/{entry.name}"
        try:
            look = partial(place.describe_damage, step, entry)
            problem = _read_patiently(look, path)
            if problem is not None:
                yield problem, False
        except FileNotFoundError:
            yield f"{path} is missing", False
        except BadDiskError as error:
            yield error.problems[0].rstrip("."), True
        heartbeat.tick()


def _read_patiently(action: Callable[[], Result], path: str) -> Result:
    """What ``action`` returns, which is tried again while waiting may help.

    Where ``path`` is shown to be no good, ``FileNotFoundError`` or ``BadDiskError``; where it may
    be whole, so that no older one is taken for it, ``RefusedError`` or ``TransientError``.
    """
    try:
        return _call_patiently(action)
    except OSError as error:
        if error.errno in _ABSENT or isinstance(error, FileNotFoundError):  # a store's: no errno
            raise FileNotFoundError(path) from error
        if error.errno in _REFUSED:
            raise RefusedError(
                f"{path} cannot be read: {error}. It may be whole, so no older one is taken: see "
                "that this user may read it, or move its folder away to go on from an older one."
            ) from error
        failure = f"{path} cannot be read (tried {len(WAITS_SECONDS) + 1} times): {error}."
        if error.errno in _BAD_DISK:
            raise BadDiskError(failure) from error
        raise TransientError(
            f"{failure} It may be whole, so no older one is taken: run the same command again."
        ) from error


def _call_patiently(action: Callable[[], Result]) -> Result:
    def may_pass(error: Exception) -> bool:
        return isinstance(error, OSError) and error.errno not in _ABSENT | _REFUSED | {None}

    def wait(error: Exception, seconds: float) -> None:
        logger.warning("%s; once more in %.0f s", error, seconds)
        time.sleep(seconds)

    return call_patiently(action, WAITS_SECONDS, may_pass=may_pass, wait=wait)


def find_sound(place: Place, ranks: Ranks, *, undone: Undone = nothing_undone) -> Manifest | None:
    """The newest checkpoint that verifies and is finite, or None where none was ever committed.

    All ``ranks`` together.
    """
    candidate = next(Search([place], ranks, undone=undone), None)
    return None if candidate is None else candidate.manifest
