"""Keeps ``RUN/commits.jsonl`` (``runs/commits.py``) in step with a run's checkpoints. Rank 0 alone.

A row that cannot be written undoes no commit and keeps no checkpoint from being removed: that is a
warning, and the next start adds the row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmscale.checkpoint.manifest import Manifest, parse_manifest
from lmscale.checkpoint.places.place import Place
from lmscale.errors import CheckpointError, LmscaleError
from lmscale.files.run_files import COMMITS_FILE
from lmscale.runs.commits import Commit, append_commit, append_removals, read_commits

logger = logging.getLogger(__name__)


def record_commit(run_folder: Path, place: Place, manifest: Manifest) -> None:
    """Add the row of a checkpoint that was committed just now."""
    name = place.name_of(manifest.step)
    with _warning(f"{name} is committed, but has no row in {COMMITS_FILE} until the next start"):
        append_commit(run_folder, describe_commit(run_folder, place, manifest, at=time.time()))


def record_removals(run_folder: Path, steps: Iterable[int]) -> None:
    """Add the rows of checkpoints that will be removed now: the file promises none that is gone."""
    with _warning(f"{COMMITS_FILE} names removed checkpoints until the next start"):
        append_removals(run_folder, steps)


def mend_log(run_folder: Path, place: Place) -> None:
    """Add the rows that a kill between a commit, or a removal, and its row has kept out.

    The newest checkpoint's manifest is read in any case: a save of the same step may have been
    committed anew just before a kill. A manifest that cannot be read gets no row: whoever looks for
    a checkpoint to resume from deals with it.
    """
    by_step = {commit.step: commit for commit in read_commits(run_folder)}
    steps = place.list_steps()
    for step in sorted(by_step.keys() - set(steps)):
        logger.warning(
            "%s names %s, whose manifest.json is not there: it was removed, or damaged",
            *(run_folder / COMMITS_FILE, by_step[step].name),
        )
    with _warning(f"{run_folder / COMMITS_FILE} is not up to date"):
        append_removals(run_folder, sorted(by_step.keys() - set(steps)))
        for step in reversed(steps):
            logged = by_step.get(step)
            if (
                step == steps[0]
                or logged is None
                or logged.folder != _folder_of(run_folder, place, step)
            ):
                commit = _read_commit(run_folder, place, step)
                if commit is not None and (logged is None or logged.key != commit.key):
                    append_commit(run_folder, commit)


def _read_commit(run_folder: Path, place: Place, step: int) -> Commit | None:
    """A checkpoint's row by its manifest; None where that cannot be read, or is none of a run."""
    try:
        manifest = parse_manifest(place.read_manifest(step), place.name_of(step))
        at = float(manifest.written_by.get("time", 0.0))
        return describe_commit(run_folder, place, manifest, at=at)
    except (CheckpointError, OSError, KeyError, TypeError, ValueError):
        return None


def describe_commit(run_folder: Path, place: Place, manifest: Manifest, *, at: float) -> Commit:
    """A checkpoint's row; ``at``: when it was committed.

    Raises ``KeyError``, ``TypeError`` or ``ValueError`` for one that does not say how far it was.
    """
    return Commit(
        step=manifest.step,
        n=manifest.state["progress"]["n"],
        folder=_folder_of(run_folder, place, manifest.step),
        sha256=manifest.hash,
        bytes=sum(entry.bytes for entry in manifest.files),
        reason=manifest.reason,
        time=at,
        attempt=manifest.written_by.get("attempt"),
    )


def _folder_of(run_folder: Path, place: Place, step: int) -> str:
    return place.name_of(step).removeprefix(f"{run_folder}/")


@contextmanager
def _warning(what: str) -> Iterator[None]:
    try:
        yield
    except (LmscaleError, OSError, ValueError) as error:  # ValueError: of a folder's odd name
        logger.warning("%s: %s", what, error)
