"""A run's starts, what they took up, and which checkpoints still belong to the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lmscale.checkpoint.find import Found, PassedOver
from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.places.local_tier import LOCAL
from lmscale.errors import DataError
from lmscale.files.jsonl import append_row, mend_tail, read_rows
from lmscale.files.run_files import RESUMES_FILE
from lmscale.files.strangers import Count, Finite, ImplausibleError, checked
from lmscale.history.rewinds import Rewind, is_undone, read_rewinds
from lmscale.runs.attempts import ATTEMPTS_FILE


@dataclass(frozen=True, kw_only=True)
class Start:
    """One attempt of a run, as far as it decides which checkpoints count."""

    attempt: Count  # counted from 1, over the whole run
    time: Finite  # Unix time
    first_step: Count  # steps done where it began


_START = TypeAdapter(Start)


def attempt_of(run_folder: Path) -> dict[str, Any]:
    """The attempt that is under way, as ``written_by`` names it; empty before the first one."""
    starts = read_starts(run_folder)
    if not starts:
        return {}
    return {"attempt": starts[-1].attempt, "attempt_time": starts[-1].time}


def read_starts(run_folder: Path) -> list[Start]:
    """The run's attempts, by the rows of their starts. Raises ``DataError`` for what is no row."""
    path = run_folder / ATTEMPTS_FILE
    starts = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            if row["event"] == "start":
                starts.append(checked(_START, row))
        except (KeyError, ImplausibleError) as error:
            raise DataError(
                f"{path}, line {number}: not an attempt's row ({type(error).__name__}: {error}). "
                "Restore that line, or remove it where the run has not written it: which "
                "checkpoints still count follows from the file."
            ) from None
    return starts


def describe_superseded(manifest: Manifest, starts: Sequence[Start]) -> str | None:
    """Why a checkpoint is not of the run's history any more, by the starts of its attempts.

    A checkpoint of step s, written in attempt a, counts only if a is among the run's attempts, and
    no later one began before s: that one has done those steps again, and the ledger is its own.
    An attempt is known by its number and its time: a run that was begun anew in the same folder
    counts from 1 again. Of the shared tier, one that names no attempt, or one that nobody knows
    (attempts.jsonl was lost), is of the history: it is where the run's owner has put it.
    """
    written_by = manifest.written_by
    key: Any = (written_by.get("attempt"), written_by.get("attempt_time"))
    keys = [(start.attempt, start.time) for start in starts]
    if key not in keys:
        if written_by.get("tier") == LOCAL:
            return f"was written by attempt {key[0]}, which {ATTEMPTS_FILE} does not know"
        return None
    later = starts[keys.index(key) + 1 :]
    undoing = next((start for start in later if start.first_step < manifest.step), None)
    if undoing is None:
        return None
    return (
        f"was written by attempt {key[0]}, but attempt {undoing.attempt} has gone on from step "
        f"{undoing.first_step} since"
    )


@dataclass(frozen=True, kw_only=True)
class History:
    """Of a whole run; each the oldest first."""

    rewinds: tuple[Rewind, ...] = ()
    starts: tuple[Start, ...] = ()

    def undone(self, manifest: Manifest) -> str | None:
        """Why a checkpoint is not to be gone on from, or None."""
        if is_undone(manifest.step, manifest.rewinds, self.rewinds):
            return f"the guard has undone step {manifest.step} since"
        return describe_superseded(manifest, self.starts)


HISTORY = TypeAdapter(History)  # reads what rank 0 sends to the others


def read_history(folder: str | Path) -> History:
    """From a run's folder. Raises ``DataError`` for a record that cannot be read."""
    return History(rewinds=read_rewinds(folder), starts=tuple(read_starts(Path(folder))))


def record_resume(run_folder: Path, found: Found | None, passed_over: Sequence[PassedOver]) -> None:
    """Append to ``RUN/resumes.jsonl`` what a start took up, and what it passed over and why.

    Rank 0 alone, once it is certain what is taken up. A start that found nothing leaves no row.
    """
    if found is None and not passed_over:
        return
    path = run_folder / RESUMES_FILE
    mend_tail(path)
    append_row(
        path,
        {
            "time": time.time(),
            "step": 0 if found is None else found.manifest.step,
            "checkpoint": None if found is None else found.name,
            "passed_over": [
                {"step": one.step, "checkpoint": one.name, "why": list(one.why)}
                for one in passed_over
            ],
        },
    )
