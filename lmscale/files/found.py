"""Files that a user names by a path, a pattern or a URL: which there are, and their bytes.

A file is known by its size and what tells a change of it: the time of its change on this machine,
elsewhere the server's ETag, or the time that it tells.
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from lmscale.errors import DataError, LmscaleError, TransientError
from lmscale.files.locations import local_path, protocol_of
from lmscale.files.redact import printable_name, redact
from lmscale.files.remote import open_filesystem, with_retries
from lmscale.files.remote_reading import INPUTS, RemoteFile, RemoteStatus, look_up, status_of

LISTING_RETRIES = 3  # a few seconds: whoever has mistyped a host waits for the message
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file to read, on this machine or elsewhere."""

    location: str
    """A path, or a URL."""
    bytes: int
    """0 where a server does not tell."""
    version: int | str
    """Time of change in ns; of a URL its ETag or the like, empty where the server tells nothing."""
    retries: int = 0

    @property
    def is_remote(self) -> bool:
        return protocol_of(self.location) is not None

    @property
    def is_web(self) -> bool:
        return _is_web(self.location)

    @property
    def shown(self) -> str:
        return show_location(self.location)

    @property
    def name(self) -> str:
        return _path_of(self.location).rsplit("/", 1)[-1]

    @property
    def ending(self) -> str:
        """``.gz`` of ``a.jsonl.GZ``."""
        return ending_of(self.location)

    def open(self, *, is_random: bool = False) -> BinaryIO:
        """Its bytes; ``is_random``: not only from beginning to end."""
        if not self.is_remote:
            return open(self.location, "rb")
        size = self.bytes or (None if self.is_web else 0)
        status = RemoteStatus(url=self.location, bytes=size, version=str(self.version))
        file = RemoteFile(status, retries=self.retries, is_random=is_random)
        # Parquet's reader takes a short answer for the file's end.
        return cast(BinaryIO, io.BufferedReader(file, 1 << 16))

    def check_unchanged(self) -> None:
        """Raise ``DataError`` where it is no longer the file that was found."""
        if self.is_remote:
            now = look_up(self.location, retries=self.retries)
            found = (now.bytes or 0, now.version)
        else:
            try:
                status = os.stat(self.location)
            except OSError as error:
                raise DataError(f"{self.shown}: is gone: {error.strerror}.") from None
            found = (status.st_size, status.st_mtime_ns)
        if found != (self.bytes, self.version):
            raise DataError(
                f"{self.shown}: changed while it was read: it had {self.bytes:,} bytes, and now "
                f"{found[0]:,}, or its content is another. Run the same command again when nothing "
                "writes to it."
            )


@dataclass
class Match:
    """What a pattern names."""

    files: list[FoundFile] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """Links to nothing, pipes and devices."""
    folders: list[str] = field(default_factory=list)


def find_files(pattern: str, *, retries: int = 0) -> Match:
    """What a path, a glob pattern or a URL names. Of s3:// and the like patterns are listed, an
    https:// URL is one file. ``retries`` is for reading.

    Raises ``DataError`` where a server refuses, ``TransientError`` where none answers.
    """
    if protocol_of(pattern) is None:
        return _find_local(pattern)
    if not _is_web(pattern):
        return _list_remote(pattern, retries)
    if "*" in pattern:
        raise DataError(
            f"{show_location(pattern)}: a web server lists no files, so this is no pattern: name "
            "each file."
        )
    few = min(retries, LISTING_RETRIES)
    return Match(files=[_found(look_up(pattern, retries=few), retries)])


@dataclass
class Named:
    """What several patterns name: number of the pattern → match."""

    matches: dict[int, Match] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    """Servers that did not answer, and may another time."""


def find_named(patterns: Sequence[str], setting: str, *, retries: int) -> Named:
    """What patterns name; the problems of a kind are one line, which begins with ``setting``."""
    named, nothing = Named(), []
    for number, pattern in enumerate(patterns):
        try:
            match = find_files(pattern, retries=retries)
        except TransientError as error:
            named.unreached += [f"{setting}: {problem}" for problem in error.problems]
            continue
        except LmscaleError as error:
            named.problems += [f"{setting}: {problem}" for problem in error.problems]
            continue
        if not (match.files or match.odd or match.folders):
            nothing.append(pattern)
        named.matches[number] = match
    if nothing:
        is_here = any(protocol_of(pattern) is None for pattern in nothing)
        looked = f" (looked from {os.getcwd()})" if is_here else ""
        named.problems.append(f"{setting}: no file matches {name_some(nothing)}{looked}.")
    return named


def name_some(places: Sequence[str]) -> str:
    """Of many places the first ones, and how many there are."""
    places = sorted(places)
    more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
    return f"{', '.join(map(show_location, places[:3]))}{more}"


def show_location(location: str) -> str:
    """For a message: without a URL's secrets, and on one line."""
    return printable_name(redact(location) if "://" in location else location)


def ending_of(location: str) -> str:
    return os.path.splitext(_path_of(location))[1].lower()


def stem_of(location: str) -> str:
    """Without its last ending, and without a URL's query."""
    return os.path.splitext(_path_of(location))[0]


def _path_of(location: str) -> str:
    return urlsplit(location).path if _is_web(location) else location


def _is_web(location: str) -> bool:
    return protocol_of(location) in ("http", "https")


def _find_local(pattern: str) -> Match:
    expanded = str(local_path(pattern)) if "://" in pattern else os.path.expanduser(pattern)
    # a[1].txt is a pattern to glob, but if there is such a file, it is meant.
    names = [expanded] if os.path.lexists(expanded) else glob.glob(expanded, recursive=True)
    match = Match()
    for name in names:
        if os.path.isdir(name):
            match.folders.append(name)
        elif not os.path.isfile(name):
            match.odd.append(name)
        else:
            status = os.stat(name)
            place = str(Path(name))
            match.files.append(
                FoundFile(location=place, bytes=status.st_size, version=status.st_mtime_ns)
            )
    return match


def _found(status: RemoteStatus, retries: int) -> FoundFile:
    return FoundFile(
        location=status.url, bytes=status.bytes or 0, version=status.version, retries=retries
    )


def _list_remote(pattern: str, retries: int) -> Match:
    few = min(retries, LISTING_RETRIES)
    entries = with_retries(lambda: _list(pattern), url=pattern, retries=few, purpose=INPUTS)
    match = Match()
    for entry in entries:
        if entry["type"] == "directory":
            match.folders.append(entry["url"])
        else:
            match.files.append(_found(status_of(entry["url"], entry), retries))
    return match


def _list(pattern: str) -> list[dict[str, Any]]:
    """The entries that a pattern names. Not ``glob`` of fsspec: where a listing below the first
    fails it goes on without that folder's files, and says nothing (2026.9.0).
    """
    filesystem, path = open_filesystem(pattern, use_listings_cache=False)
    prefix = pattern.partition("://")[0] + "://"
    parts = path.strip("/").split("/")
    if _MAGIC.search(parts[0]):
        raise DataError(f"{pattern}: name the bucket: only what is in one can be listed.")
    if not _MAGIC.search(path):
        return [{**filesystem.info(path), "url": pattern}]
    try:
        return [{**filesystem.info(path), "url": pattern}]  # a[1].txt, as on this machine
    except (FileNotFoundError, PermissionError):
        pass  # who may list one folder alone is refused what is not there; else the listing says so
    fixed = next(at for at, part in enumerate(parts) if _MAGIC.search(part))
    folders, found = ["/".join(parts[:fixed])], []
    for depth, part in enumerate(parts[fixed:], start=fixed + 1):
        if part == "**":
            rest = parts[depth - 1 :]
            below = (each for folder in folders for each in _find_below(filesystem, folder, rest))
            found = list(below)
            break
        entries = [entry for folder in folders for entry in _entries(filesystem, folder)]
        found = [each for each in entries if _is_part(each["name"].rsplit("/", 1)[-1], part)]
        folders = [each["name"] for each in found if each["type"] == "directory"]
    return [{**entry, "url": prefix + entry["name"].lstrip("/")} for entry in found]


def _entries(filesystem: Any, folder: str) -> list[dict[str, Any]]:
    try:
        listed = filesystem.ls(folder, detail=True)
    except FileNotFoundError:
        if "/" not in folder.strip("/"):
            raise  # the bucket
        return []
    entries = ({**entry, "name": entry["name"].rstrip("/")} for entry in listed)
    return [entry for entry in entries if entry["name"] != folder]


def _find_below(filesystem: Any, folder: str, rest: Sequence[str]) -> list[dict[str, Any]]:
    listed = filesystem.find(folder, detail=True)
    start = len(folder.rstrip("/")) + 1
    return [each for name, each in listed.items() if _is_named(name[start:].split("/"), rest)]


def _is_named(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a relative path, in its parts, is one that the pattern names, as Python's glob has
    it: ``**`` is any number of folders, and what begins with a dot is named only so.
    """
    if not parts or not names:
        return not parts and not names
    if parts[0] != "**":
        return _is_part(names[0], parts[0]) and _is_named(names[1:], parts[1:])
    is_hidden = names[0].startswith(".")
    if len(parts) == 1:
        return not is_hidden and (len(names) == 1 or _is_named(names[1:], parts))
    return _is_named(names, parts[1:]) or (not is_hidden and _is_named(names[1:], parts))


def _is_part(name: str, part: str) -> bool:
    return fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))
