"""The place of a run's checkpoints: in its own folder, or where its configuration says."""

from __future__ import annotations

import sys
from pathlib import Path

from lmscale.checkpoint.commit_log import mend_log
from lmscale.checkpoint.places.place import LocalPlace, Place
from lmscale.checkpoint.places.remote_place import RemotePlace
from lmscale.config import RunConfig
from lmscale.errors import CheckpointError
from lmscale.files.cache import NodeCache
from lmscale.files.locations import local_path, protocol_of
from lmscale.files.run_files import CHECKPOINTS, COMMITS_FILE
from lmscale.runs.commits import read_commits
from lmscale.stream.dataset import cache_folder


def open_place(config: RunConfig, run_folder: Path | None = None) -> Place:
    """The place that a run's configuration names; nothing is looked at yet.

    ``run_folder`` is where the run is now, should somebody have moved it since.
    """
    folder = config.checkpoint.folder
    if not folder:
        return LocalPlace((run_folder or config.folder) / CHECKPOINTS)
    if protocol_of(folder) is None:
        return LocalPlace(local_path(folder).absolute())
    cache = NodeCache(
        folder=cache_folder(config.stream.cache) / CHECKPOINTS,
        max_bytes=sys.maxsize,  # as much as is being read, and only for that time
        retries=config.checkpoint.retries,
    )
    return RemotePlace(folder, retries=config.checkpoint.retries, cache=cache)


def prepare_place(config: RunConfig, place: Place) -> None:
    """Prepare the place at every start, on rank 0: from now on no other process commits here.

    A place outside the run's folder is claimed for the run. Saves that were cut off are cleared
    away, and ``commits.jsonl`` is brought up to date. Raises ``CheckpointError`` when nothing can
    be saved here, or when the run's checkpoints seem to be somewhere else.
    """
    elsewhere = [commit for commit in read_commits(config.folder) if commit.is_elsewhere]
    # A file system that is not mounted looks like a run that has never saved. Who has removed the
    # checkpoints in the run's own folder wants to begin anew.
    if elsewhere and not place.list_steps():
        log = config.folder / COMMITS_FILE
        raise CheckpointError(
            f"{place.location} holds no checkpoint, but this run has saved before (up to step "
            f"{elsewhere[-1].step}, to {elsewhere[-1].folder}, by {log}). Is it mounted, and the "
            f"right place? To begin the run anew, remove {log}."
        )
    if config.checkpoint.folder:
        own = LocalPlace(config.folder / CHECKPOINTS)
        for step in own.list_steps():
            raise CheckpointError(
                f"{own.name_of(step)} is a checkpoint, but checkpoint.folder = {place.location} "
                f"says that this run's are there. Move the folders step-* of {own.location} there, "
                "or take checkpoint.folder out of the configuration."
            )
        place.claim(f"{config.run.name} in {config.folder.absolute()}")
    place.discard_uncommitted()
    mend_log(config.folder, place)
