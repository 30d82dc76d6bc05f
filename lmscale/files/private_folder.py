"""Folders that only this user may fill, in places that all users of a machine share."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

MODE = 0o700
MAX_LINKS = 40  # Linux follows no more


def find_risk(folder: Path) -> str | None:
    """Why another user could have put files into ``folder``, or could yet, or None.

    root's folders are trusted, and so is the group of one's own folder: whoever opens it to a group
    means to share it. Folders above count where anybody could have made them. Behind a link, all
    this is asked of what it leads to as well.
    """
    return next(filter(None, map(_find_risk_on_way, _find_ways(folder.absolute()))), None)


def _find_ways(folder: Path) -> Iterator[Path]:
    """The folder as it is named, then with one link more of its path followed each time."""
    yield folder
    for _ in range(MAX_LINKS):
        links = (path for path in (*reversed(folder.parents), folder) if path.is_symlink())
        link = next(links, None)
        if link is None:
            return
        folder = link.parent / link.readlink() / folder.relative_to(link)
        yield folder


def _find_risk_on_way(folder: Path) -> str | None:
    try:
        if folder.stat().st_mode & stat.S_IWOTH:
            return "every user may write to it"
        problem = _describe_owner(folder)
    except FileNotFoundError:
        problem = None
    for path in (folder, *folder.parents):
        try:
            above = path.parent.stat().st_mode
            if problem or path == path.parent or not above & stat.S_IWOTH:
                continue
            if not above & stat.S_ISVTX:
                return f"every user may put another one in its place ({path.parent} is not sticky)"
            problem = _describe_owner(path)
        except FileNotFoundError:
            continue
    return problem


def _describe_owner(path: Path) -> str | None:
    # Of a link and of what it leads to: another user's link leads where he likes.
    owners = {path.lstat().st_uid, path.stat().st_uid}
    strangers = sorted(owners - {os.getuid(), 0})
    if not strangers:
        return None
    return f"{path} belongs to user {strangers[0]}, not to this one ({os.getuid()})"


def make_private(folder: Path) -> None:
    """Create the folder with mode 0700; an existing folder keeps its mode."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=MODE, exist_ok=True)


def is_own_file(path: Path) -> bool:
    """Whether ``path`` is a plain file, no link, of this user or of root."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid in (os.getuid(), 0)
