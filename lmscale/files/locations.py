"""Where a file lies: a path of this machine, or a URL."""

from __future__ import annotations

from pathlib import Path


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


def split_checkpoint(place: str) -> tuple[Path, int | None]:
    """The run's folder and the step that FOLDER or FOLDER@STEP names; a folder that has an @ in its
    name wins.
    """
    whole = Path(place).expanduser()
    folder, at, step = place.rpartition("@")
    if at and step.isdecimal() and len(step) < 16 and not whole.is_dir():
        return Path(folder).expanduser(), int(step)
    return whole, None


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
