"""Where a file lies: a path of this machine, or a URL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from lmscale.errors import ConfigError
from lmscale.files.run_files import CHECKPOINTS, CONFIG_FILE, STEP_FOLDER, step_name


def is_remote(location: str) -> bool:
    """Whether a location is a URL and not a path of this machine."""
    return protocol_of(location) is not None


def absolute_location(location: str) -> str:
    """A location that means the same place in every working directory; a URL stays as it is."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


def protocol_of(location: str | Path) -> str | None:
    """``s3``, ``http``, … or None for a path on this machine."""
    protocol, separator, _ = str(location).partition("://")
    return protocol if separator and protocol != "file" else None


def local_path(location: str | Path) -> Path:
    return Path(str(location).removeprefix("file://")).expanduser()


RUNS = Path("runs")  # where a run's folder is by default


def split_checkpoint(place: str) -> tuple[Path, int | None]:
    """The run's folder and the step that FOLDER or FOLDER@STEP names; a folder that has an @ in its
    name wins.
    """
    whole = Path(place).expanduser()
    folder, at, step = place.rpartition("@")
    if at and step.isdecimal() and len(step) < 16 and not whole.is_dir():
        return Path(folder).expanduser(), int(step)
    return whole, None


class CheckpointPlace(NamedTuple):
    """Which checkpoint is meant."""

    folder: Path  # of its run; where it is alone, that which holds the checkpoint's own folder
    step: int | None = None  # None: the newest sound one
    is_alone: bool = False  # copied away from its run's folder

    @property
    def absolute(self) -> str:
        """What ``find_checkpoint`` finds it by, in every working directory."""
        if self.is_alone:
            return absolute_location(str(self.own_folder))
        folder = absolute_location(str(self.folder))
        return folder + ("" if self.step is None else f"@{self.step}")

    @property
    def own_folder(self) -> Path:
        """The checkpoint's own, of one that is alone."""
        assert self.is_alone and self.step is not None
        return self.folder / step_name(self.step)


def find_checkpoint(place: str, *, beside: Path) -> CheckpointPlace:
    """What RUN, RUN@STEP, or the folder of a checkpoint names. RUN is a folder, or the name of a
    run in the folder ``beside``. Whether it is there is for the caller to see.
    """
    folder, step = split_checkpoint(place)
    path = Path(os.path.abspath(folder))  # its name and its parents, also of ".."
    if step is None and (match := STEP_FOLDER.fullmatch(path.name)) and folder.is_dir():
        run = path.parent.parent
        if path.parent.name == CHECKPOINTS and (run / CONFIG_FILE).is_file():
            return CheckpointPlace(folder.parent.parent, int(match[1]))
        return CheckpointPlace(folder.parent, int(match[1]), is_alone=True)
    is_name = folder.name == str(folder) and not (folder / CONFIG_FILE).is_file()
    if is_name and not is_remote(place):
        whole = beside / place  # a folder that has an @ in its name wins here, too
        if whole.is_dir():
            return CheckpointPlace(whole)
        if (beside / folder).is_dir():
            return CheckpointPlace(beside / folder, step)
    return CheckpointPlace(folder, step)


def find_run(run: Path | None) -> Path | None:
    """The folder that RUN names: a folder, or by its name a run in ``RUNS``, as ``run.init_from``
    and ``runs branch`` take it. Raises ``ConfigError`` where a step stands with it.
    """
    if run is None:
        return None
    place = find_checkpoint(str(run), beside=RUNS)
    if place.is_alone:
        return run
    if place.step is not None:
        raise ConfigError(
            f"{run}: here a run is named alone, {place.folder}. A command that takes one of its "
            f"checkpoints takes it by --step {place.step}."
        )
    return place.folder


def absolute_checkpoint(place: str) -> str:
    """The same name, good in every working directory."""
    folder, step = split_checkpoint(place)
    return absolute_location(str(folder)) + ("" if step is None else f"@{step}")


def join_location(folder: str | Path, name: str) -> str:
    """``name`` inside a folder or URL; a URL's query (a signature, say) stays at the end."""
    if protocol_of(folder) is None:
        return str(local_path(folder) / name)
    path, question, query = str(folder).partition("?")
    return f"{path.rstrip('/')}/{name}{question}{query}"
