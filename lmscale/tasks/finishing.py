"""The end of a build: put the units' files together, name them, and swap the folder in.

May be killed at any point, and may be done over by another process, at the same time too: the
same bytes go to the same places.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmscale.files.atomic import fsync_folder, have_sizes, replace_folder, write_json
from lmscale.tasks.array_tasks import SharedBuild, remove_markers
from lmscale.tasks.takeover import Turn, fresh_names, take_turn
from lmscale.tasks.target import MANIFEST, Target, UnitsMissing

NOTE = "moves.json"


def is_assembled(build: SharedBuild) -> bool:
    """Whether files have begun to leave the units' folders, which are then not whole."""
    return (build.work / NOTE).exists() or (build.work / MANIFEST).exists()


def finish(target: Target[Any], processes: int, turn: Turn) -> None:
    """Turn the units' results into ``build.final``."""
    work, final = target.build.work, target.build.final
    work.mkdir(exist_ok=True)
    if not (work / MANIFEST).exists():
        if not (work / NOTE).exists():
            fresh_names(target.parts)  # what other nodes finished a moment ago
            manifest, moves = target.assemble(processes)
            turn.check()
            write_json(work / NOTE, {"manifest": manifest, "moves": moves})
        _move(target, processes, turn, json.loads((work / NOTE).read_bytes()))
    target.load(work)
    for path in work.iterdir():  # notes, plans, and what a kill has left half-written
        if path.name != MANIFEST and not any(map(path.match, target.contents)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    if final.exists():
        target.load(final)  # only what lmscale wrote is replaced
    turn.check()
    replace_folder(work, final)


def _move(target: Target[Any], processes: int, turn: Turn, note: dict[str, Any]) -> None:
    """Rename every file to its place. A rename that was done before is passed over."""
    build, work = target.build, target.build.work
    turn.check()
    for source, name, _ in note["moves"]:
        if (build.folder / source).exists():
            os.replace(build.folder / source, work / name)
    for folder in sorted({(work / name).parent for _, name, _ in note["moves"]}):
        fsync_folder(folder)
    if not have_sizes((work / name, size) for _, name, size in note["moves"]):
        (work / NOTE).unlink(missing_ok=True)
        target.assemble(processes)  # raises for units that have given files away
        raise UnitsMissing(range(len(build.sizes)))
    write_json(work / MANIFEST, note["manifest"])


def tidy(build: SharedBuild, leftovers: Sequence[Path] = ()) -> None:
    """Remove what is left of a finished build: a kill came between, or a task came late.

    Builds of other settings stay. ``leftovers`` are folders of this build beside its own.
    """
    if not build.folder.exists():
        return
    with take_turn(build.folder / "finisher") as turn:
        if turn is None:
            return  # another is about to remove it, or finishes what other settings made
        remove_markers(build)
        for folder in (build.work, build.folder / "finisher", *leftovers):
            shutil.rmtree(folder, ignore_errors=True)
    discard_empty(build.folder)


def discard_empty(folder: Path) -> None:
    """Remove every empty folder below ``folder``, and ``folder`` itself if nothing is left."""
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(path)
        except OSError:
            pass  # not empty, or gone
