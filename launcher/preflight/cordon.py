"""The cordon file: nodes that a preflight found bad, so that the next jobs leave them out.

One line an event, fields separated by tabs: when (UTC), node, ``out`` or ``in``, user, job, reason.
A node's newest line counts. Lines are only ever appended, by several users at once; lines of any
other form, such as those of people who edited the file, are passed over.
"""

from __future__ import annotations

import calendar
import getpass
import os
import stat
import time
from pathlib import Path

from lmscale.errors import ClusterError
from lmscale.files.locks import lock

LOCK_SECONDS = 10.0
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_HEAD = "# Nodes that lmscale leaves out; a node's newest line counts.\n"
_HEAD += "# time\tnode\tout or in\tuser\tjob\treason\n"


def active(file: str | Path, now: float, hours: float) -> dict[str, str]:
    """Node → reason, for the nodes that are out at ``now``; an exclusion lasts ``hours``.

    A missing file is an empty one. Raises ``ClusterError`` when it cannot be read.
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
    reasons: dict[str, str] = {}
    for line in text.splitlines():
        try:
            when, node, state, user, job, reason = line.split("\t")
            began = calendar.timegm(time.strptime(when, _TIME))
        except ValueError:  # a comment, an empty or a damaged line
            continue
        if state == "out" and now < began + hours * 3600:
            reasons[node] = f"{reason} (job {job} of {user}, {when})"
        elif state in ("in", "out"):
            reasons.pop(node, None)
    return reasons


def cordon(file: str | Path, node: str, *, reason: str, job: str, is_out: bool = True) -> None:
    """Leave ``node`` out from now on, or take it back; makes the file. Raises ``ClusterError``."""
    path = Path(file)
    texts = (node, "out" if is_out else "in", user_name(), job, reason)
    when = time.strftime(_TIME, time.gmtime())
    line = "\t".join([when, *(" ".join(text.split()) or "-" for text in texts)]) + "\n"
    try:
        descriptor = _open(path)
        try:
            lock(descriptor, LOCK_SECONDS)
            head = _HEAD if os.fstat(descriptor).st_size == 0 else ""
            # One write at the end of the file, also where the file system knows no locks.
            os.write(descriptor, (head + line).encode("utf-8", "replace"))
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
    # umask of the user whose job is the first to find a bad node.
    folder = os.stat(path.parent)
    if os.fstat(descriptor).st_uid == os.geteuid():
        try:
            os.fchown(descriptor, -1, folder.st_gid)
        except PermissionError:
            pass  # not a member of the folder's group
        os.fchmod(descriptor, 0o644 | folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return descriptor


def user_name() -> str:
    """Of this process's user; the number where no user database on this node knows a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
