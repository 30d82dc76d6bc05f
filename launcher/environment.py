"""What is installed, compared with what a submission had: before a rank starts."""

from __future__ import annotations

from pathlib import Path

from lmscale.errors import DataError
from lmscale.files.atomic import write_bytes
from lmscale.files.printing import say
from lmscale.runs.installed import (
    Installed,
    find_differences,
    parse_lock,
    read_installed,
    render_lock,
)


def check_installed(lock: Path, *, is_refusing: bool, is_first: bool, node: str) -> list[str]:
    """Why this rank may not start: what decides figures is installed in another version.

    Where the submission could not know what the jobs' Python has, as in a container, the first
    rank (``is_first``) of the first attempt writes the lock.
    """
    now = read_installed()
    try:
        before = parse_lock(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if is_first:
            _record(lock, now)
        return []
    except (OSError, UnicodeDecodeError) as error:
        say(f"lmscale: what is installed is not compared: {lock} cannot be read: {error}", err=True)
        return []
    found = find_differences(before, now)
    if found.others and is_first:
        say(f"lmscale: installed otherwise than at the submission: {', '.join(found.others)}")
    if not found.deciding:
        return []
    told = ", ".join(found.deciding)
    if not is_refusing:
        say(
            f"lmscale: {node}: installed otherwise than at the submission, which may change "
            f"figures: {told}",
            err=True,
        )
        return []
    # Which installing alone would leave there, such as a library that only a newer torch needs.
    removed = f" and `uv pip uninstall {' '.join(found.added)}`" if found.added else ""
    return [
        f"{node}: installed otherwise than at the submission, by which figures or files may "
        f"change: {told}. Restore it with Python {before.python}: `uv pip install -r {lock}`"
        f"{removed}, or pip. Or accept it: launch the run again, which records what is there then; "
        "`environment: warn` in the cluster profile lets every attempt go on and say so."
    ]


def _record(lock: Path, now: Installed) -> None:
    try:
        write_bytes(lock, render_lock(now).encode())
    except (OSError, DataError) as error:
        say(f"lmscale: {lock} cannot be written ({error}).", err=True)
