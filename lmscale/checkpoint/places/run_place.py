"""The place of a run's checkpoints, and what its own folder tells of them when they are elsewhere.

Checkpoints that are not in the run's folder leave a copy of their manifest there, at
``RUN/checkpoints/step-…/manifest.json``: a receipt. The audit, the launcher, the batch script and
``lmscale runs`` read how far the run is from it, and need not ask a store. What counts on resume
are the checkpoints themselves.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from lmscale.checkpoint.layout import MANIFEST, list_steps, step_folder
from lmscale.checkpoint.manifest import FileEntry
from lmscale.checkpoint.places.place import LocalPlace, Place
from lmscale.checkpoint.places.remote_place import RemotePlace
from lmscale.config import RunConfig
from lmscale.errors import CheckpointError, LmscaleError
from lmscale.files.atomic import write_bytes, writing
from lmscale.files.cache import NodeCache
from lmscale.files.locations import local_path, protocol_of
from lmscale.stream.dataset import cache_folder

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"


def open_place(config: RunConfig, run_folder: Path | None = None) -> Place:
    """The place that a run's configuration names; nothing is looked at yet.

    ``run_folder`` is where the run is now, should somebody have moved it since.
    """
    own = (run_folder or config.folder) / CHECKPOINTS
    folder = config.checkpoint.folder
    if not folder:
        return LocalPlace(own)
    if protocol_of(folder) is None:
        elsewhere: Place = LocalPlace(local_path(folder).absolute())
    else:
        cache = NodeCache(
            folder=cache_folder(config.stream.cache) / CHECKPOINTS,
            max_bytes=sys.maxsize,  # as much as is being read, and only for that time
            retries=config.checkpoint.retries,
        )
        elsewhere = RemotePlace(folder, retries=config.checkpoint.retries, cache=cache)
    owner = f"{config.run.name} in {own.parent.absolute()}"
    return ReceiptedPlace(elsewhere, receipts=own, run_name=owner)


class ReceiptedPlace(Place):
    """A place outside the run's folder, whose manifests have copies in it.

    A receipt is written after the commit and removed before the checkpoint, so it never promises
    what is not there; ``prepare`` mends what a kill between the two has left.
    """

    def __init__(self, place: Place, *, receipts: Path, run_name: str) -> None:
        self.location = place.location
        self._place = place
        self._receipts = receipts
        self._run_name = run_name

    def claim(self, run_name: str) -> None:
        self._place.claim(run_name)

    def prepare(self) -> None:
        self._refuse_real_checkpoints()
        self._refuse_emptiness()
        self._place.claim(self._run_name)
        self.discard_uncommitted()
        steps = self._place.list_steps()
        for step in {*list_steps(self._receipts), *list_steps(self._receipts, committed=False)}:
            if step not in steps:
                self._remove_receipt(step)
        for step in steps:
            # One that is there has the content, but for a save of the same step that a kill cut
            # off right after its commit: that is the newest.
            if step == steps[0] or not self._receipt(step).exists():
                # What cannot be read is dealt with by whoever looks for a checkpoint to go on from.
                with suppress(UnicodeDecodeError, OSError):
                    self._write_receipt(step, self._place.read_manifest(step).encode())

    def _refuse_emptiness(self) -> None:
        """A file system that is not mounted looks like a run that has never saved."""
        known = list_steps(self._receipts)
        if known and not self._place.list_steps():
            raise CheckpointError(
                f"{self.location} holds no checkpoint, but this run has saved there before (up to "
                f"step {known[0]}, by its receipts in {self._receipts}). Is it mounted, and the "
                f"right place? To begin the run anew, remove {self._receipts}."
            )

    def _refuse_real_checkpoints(self) -> None:
        for step in list_steps(self._receipts):
            folder = step_folder(self._receipts, step)
            if any(path.suffix == ".safetensors" for path in folder.iterdir()):
                raise CheckpointError(
                    f"{folder} is a checkpoint, but checkpoint.folder = {self.location} says that "
                    f"this run's are there. Move the folders step-* of {self._receipts} there, or "
                    "take checkpoint.folder out of the configuration."
                )

    def commit(self, step: int, manifest: bytes) -> bytes:
        found = self._place.commit(step, manifest)
        try:
            self._write_receipt(step, found)
        except (LmscaleError, OSError) as error:
            logger.warning(
                "%s is committed, but has no receipt until the next start: %s",
                *(self.name_of(step), error),
            )
        return found

    def begin(self, step: int) -> None:
        self._remove_receipt(step)
        self._place.begin(step)

    def delete(self, step: int) -> None:
        self._remove_receipt(step)
        self._place.delete(step)

    def list_steps(self, *, committed: bool = True) -> list[int]:
        return self._place.list_steps(committed=committed)

    def read_manifest(self, step: int) -> str:
        return self._place.read_manifest(step)

    def write_file(self, step: int, name: str, pieces: Iterable[memoryview]) -> None:
        self._place.write_file(step, name, pieces)

    def discard_uncommitted(self) -> None:
        self._place.discard_uncommitted()

    def describe_damage(self, step: int, entry: FileEntry) -> str | None:
        return self._place.describe_damage(step, entry)

    def opened(self, step: int, entry: FileEntry) -> AbstractContextManager[Path]:
        return self._place.opened(step, entry)

    def name_of(self, step: int) -> str:
        return self._place.name_of(step)

    def _receipt(self, step: int) -> Path:
        return step_folder(self._receipts, step) / MANIFEST

    def _write_receipt(self, step: int, manifest: bytes) -> None:
        with writing("a checkpoint's receipt", self._receipts, CheckpointError):
            self._receipt(step).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._receipt(step), manifest)

    def _remove_receipt(self, step: int) -> None:
        self._receipt(step).unlink(missing_ok=True)
        shutil.rmtree(self._receipt(step).parent, ignore_errors=True)
