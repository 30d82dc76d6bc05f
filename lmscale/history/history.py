"""A run's starts and rewinds, and which checkpoints still belong to the run.

A rewind's row is durable before anything else happens, and everything else follows from the rows:
which checkpoints are of a branch that was undone, and which jumps the samples' order has behind any
other. So a kill at any moment changes nothing. Its ``jump_from_n`` is in the numbers of the branch
that it undoes, which has the jumps of all rewinds before it. A checkpoint knows how many rewinds
its own branch has (``Manifest.rewinds``) and holds their jumps in the stream's state; those of the
later ones are applied at the start, to the segments of the branch that was undone: its mixture may
have begun behind the checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lmscale.checkpoint.find import Candidate, PassedOver
from lmscale.checkpoint.layout import LOCAL_TIER
from lmscale.checkpoint.manifest import Manifest
from lmscale.errors import DataError, LmscaleError, NoSpaceError
from lmscale.files.jsonl import append_durable_row, append_row, mend_tail, read_rows
from lmscale.files.run_files import ATTEMPTS_FILE, RESUMES_FILE, REWINDS_FILE
from lmscale.files.strangers import Count, Finite, ImplausibleError, Text, checked
from lmscale.runs.attempts import read_attempts
from lmscale.stream.mixture import Jump, Segment
from lmscale.stream.mixture_changes import MixtureChange

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """One attempt of a run, as far as it decides which checkpoints count."""

    attempt: Count  # counted from 1, over the whole run
    time: Finite  # Unix time
    first_step: Count  # steps done where it began
    is_guessed: bool = False  # by its next row, which is later; that of the start was damaged


def attempt_of(run_folder: Path) -> dict[str, Any]:
    """The attempt that is under way, as ``written_by`` names it; empty before the first one."""
    starts = read_starts(run_folder)
    if not starts:
        return {}
    return {"attempt": starts[-1].attempt, "attempt_time": starts[-1].time}


def read_starts(run_folder: Path) -> list[Start]:
    """The run's attempts. Where the row of a start was damaged, the row behind it tells as well how
    many steps were done where it began; a line that is no row is named in the log and left out.
    """
    starts: list[Start] = []
    for row in read_attempts(run_folder):
        number = row["attempt"]
        if row["event"] == "start" or not starts or number > starts[-1].attempt:
            is_guessed = row["event"] != "start"
            starts.append(
                Start(
                    attempt=number,
                    time=row["time"],
                    first_step=row["step" if is_guessed else "first_step"],
                    is_guessed=is_guessed,
                )
            )
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
    attempt, began_at = written_by.get("attempt"), written_by.get("attempt_time")
    number = _find_start(attempt, began_at, starts)
    if number is None:
        if written_by.get("tier") == LOCAL_TIER:
            return f"was written by attempt {attempt}, which {ATTEMPTS_FILE} does not know"
        return None
    later = starts[number + 1 :]
    undoing = next((start for start in later if start.first_step < manifest.step), None)
    if undoing is None:
        return None
    return (
        f"was written by attempt {attempt}, but attempt {undoing.attempt} has gone on from step "
        f"{undoing.first_step} since"
    )


def _find_start(attempt: Any, began_at: Any, starts: Sequence[Start]) -> int | None:
    """Where an attempt is among ``starts``, by its number and its time."""
    earlier = -math.inf
    for number, start in enumerate(starts):
        is_then = start.time == began_at
        if start.is_guessed and isinstance(began_at, int | float):
            is_then = earlier <= began_at <= start.time
        if start.attempt == attempt and is_then:
            return number
        earlier = start.time
    return None


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """One return to an older checkpoint, and the window of samples left out since."""

    number: Count  # counted from 1, over the whole run
    at_step: Count  # where the divergence was noticed
    to_step: Count  # the checkpoint that the run went back to
    to_n: Count  # samples used there
    jump_from_n: Count  # the first sample left out, by its number on the branch that is undone
    jump_samples: Count
    why: Text
    time: Finite
    segments: tuple[Segment, ...] = ()  # the stream's, of the branch that is undone


_REWIND = TypeAdapter(Rewind)


def read_rewinds(folder: str | Path) -> tuple[Rewind, ...]:
    """The run's rewinds, oldest first; none where there is no file. Raises ``DataError``.

    A torn last line was never decided on: the run goes on as if it had not got that far.
    """
    path = Path(folder) / REWINDS_FILE
    rewinds = []
    for expected, tree in enumerate(read_rows(path), start=1):
        try:
            rewind = checked(_REWIND, tree)
        except ImplausibleError as error:
            raise DataError(
                f"{path}, line {expected}: not a rewind ({error}). "
                "Restore the file: the order of the samples follows from it."
            ) from None
        if rewind.number != expected or not rewind.to_n <= rewind.jump_from_n:
            raise DataError(
                f"{path}, line {expected}: rewind {rewind.number} from sample "
                f"{rewind.jump_from_n} on, back to {rewind.to_n}, cannot stand here. Restore the "
                "file: the order of the samples follows from it."
            )
        rewinds.append(rewind)
    return tuple(rewinds)


def record_rewind(folder: str | Path, rewind: Rewind) -> None:
    """Append the row; when this returns, the run is rewound, whatever happens to it then.

    Rank 0 only, which holds the run's lease. Raises ``NoSpaceError`` for a disk that is full, and
    ``DataError`` when the row before it is not there.
    """
    path = Path(folder) / REWINDS_FILE
    num_recorded = len(read_rewinds(folder))
    if rewind.number != num_recorded + 1:
        raise DataError(
            f"{path}: it holds {num_recorded} rewinds, so this is not number {rewind.number}. "
            "Another process writes to the run's folder, or the file was edited."
        )
    append_durable_row(path, asdict(rewind), no_space=NoSpaceError)
    logger.warning(
        "rewind %d: from step %d back to step %d; %d samples from number %d on are jumped: %s",
        *(rewind.number, rewind.at_step, rewind.to_step, rewind.jump_samples),
        *(rewind.jump_from_n, rewind.why),
    )


def is_undone(step: int, rewinds_in_history: int, rewinds: Sequence[Rewind]) -> bool:
    """Whether a checkpoint, by the rewinds in its history, is of a branch that was undone since."""
    return any(step > rewind.to_step for rewind in rewinds[rewinds_in_history:])


def pending_jumps(rewinds: Sequence[Rewind], *, rewinds_in_history: int) -> tuple[Jump, ...]:
    """What a start at a checkpoint must add to its stream's state, in the order of the decisions.

    Raises ``DataError`` when the checkpoint knows of rewinds that the run does not.
    """
    if rewinds_in_history > len(rewinds):
        raise DataError(
            f"The checkpoint has {rewinds_in_history} rewinds behind it, but {REWINDS_FILE} in the "
            f"run's folder holds {len(rewinds)}. Restore that file."
        )
    return tuple(
        Jump(start=row.jump_from_n, samples=row.jump_samples, segments=row.segments)
        for row in rewinds[rewinds_in_history:]
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


def record_resume(
    run_folder: Path,
    candidate: Candidate | None,
    passed_over: Sequence[PassedOver],
    *,
    mixture: MixtureChange | None = None,
) -> None:
    """Append to ``RUN/resumes.jsonl`` what a start took up, what it passed over and why, and which
    change of the mixture it makes.

    Rank 0 alone, once it is certain what is taken up. A start that found nothing leaves no row.
    """
    if candidate is None and not passed_over:
        return
    path, row = (
        run_folder / RESUMES_FILE,
        {
            "time": time.time(),
            "step": 0 if candidate is None else candidate.manifest.step,
            "checkpoint": None if candidate is None else candidate.name,
            "passed_over": [
                {"step": passed.step, "checkpoint": passed.name, "why": list(passed.why)}
                for passed in passed_over
            ],
            **({} if mixture is None else {"mixture": asdict(mixture)}),
        },
    )
    try:
        mend_tail(path)
        append_row(path, row)
    except LmscaleError as error:  # a record for people stops no start
        logger.warning("%s", error)
