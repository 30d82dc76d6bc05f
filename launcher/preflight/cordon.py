"""The cordon file: nodes that a preflight found bad, so that the next jobs leave them out.

One line an event, fields separated by tabs: when (UTC), node, ``out`` or ``in``, user, job, reason.
A node's newest line counts. Lines are only ever appended, by several users at once; lines that are
not of this form, and those of people who edited it, are passed over.
"""

from __future__ import annotations

import calendar
import getpass
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from lmscale.errors import ClusterError
from lmscale.files.locks import lock

LOCK_SECONDS = 10.0
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_HEAD = "# Nodes that lmscale leaves out; a node's newest line counts.\n"
_HEAD += "# time\tnode\tout or in\tuser\tjob\treason\n"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line."""

    time: float
    node: str
    is_out: bool
    user: str
    job: str
    reason: str


def active(file: str | Path, now: float, hours: float) -> dict[str, str]:
    """Node → reason, for the nodes that are out at ``now``; an exclusion lasts ``hours``.

    A file that is not there is an empty one. Raises ``ClusterError`` when it cannot be read.
    """
    try:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ClusterError(
            f"{file}: the cordon file cannot be read: {error.strerror}. Have it mended, or leave "
            "preflight.cordon_file out of the profile."
        ) from None
    newest = {entry.node: entry for entry in map(parse_line, text.splitlines()) if entry}
    return {
        node: f"{entry.reason} (job {entry.job} of {entry.user}, {_when(entry.time)})"
        for node, entry in newest.items()
        if entry.is_out and now < entry.time + hours * 3600
    }


def _when(seconds: float) -> str:
    return time.strftime(_TIME, time.gmtime(seconds))


def parse_line(line: str) -> Entry | None:
    """An entry, or None for a comment, an empty or a damaged line."""
    fields = line.split("\t")
    if len(fields) != 6 or fields[2] not in ("out", "in"):
        return None
    try:
        when = calendar.timegm(time.strptime(fields[0], _TIME))
    except ValueError:
        return None
    _, node, state, user, job, reason = fields
    return Entry(time=when, node=node, is_out=state == "out", user=user, job=job, reason=reason)


def render_line(entry: Entry) -> str:
    """The line that ``parse_line`` reads back; white space in a field becomes single spaces."""
    texts = (entry.node, "out" if entry.is_out else "in", entry.user, entry.job, entry.reason)
    return "\t".join([_when(entry.time), *(" ".join(text.split()) or "-" for text in texts)])


def append(file: str | Path, entry: Entry) -> None:
    """Add a line; the file is made where it is missing. Raises ``ClusterError``."""
    path = Path(file)
    try:
        descriptor = _open(path)
        try:
            lock(descriptor, LOCK_SECONDS)
            head = _HEAD if os.fstat(descriptor).st_size == 0 else ""
            # One write at the end of the file, also where the file system knows no locks.
            os.write(descriptor, f"{head}{render_line(entry)}\n".encode("utf-8", "replace"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ClusterError(
            f"{path}: the cordon file cannot be written: {error.strerror}. Its folder must exist, "
            "and every user of the profile must be allowed to write to the file."
        ) from None


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    descriptor = os.open(path, flags | os.O_CREAT, 0o644)
    # Who may add files to the folder may add lines: the users of a profile share it, whatever the
    # umask of the one whose job is the first to find a bad node.
    folder = os.stat(path.parent)
    if os.fstat(descriptor).st_uid == os.geteuid():
        try:
            os.fchown(descriptor, -1, folder.st_gid)
        except PermissionError:
            pass  # not a member of the folder's group
        shared = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        os.fchmod(descriptor, 0o644 | shared)
    return descriptor


def cordon(file: str | Path, node: str, *, reason: str, job: str, is_out: bool = True) -> None:
    """Leave ``node`` out from now on, or take it back."""
    append(
        file,
        Entry(
            time=time.time(),
            node=node,
            is_out=is_out,
            user=user_name(),
            job=job or "-",
            reason=reason,
        ),
    )


def user_name() -> str:
    """Of this process's user; the number where no user database on this node knows a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
