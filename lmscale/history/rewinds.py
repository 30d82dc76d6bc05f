"""Rewinds: what a run undid, and which samples it jumps since, in ``RUN/rewinds.jsonl``.

A row is durable before anything else happens, and everything else follows from the rows: which
checkpoints are of a branch that was undone, and which jumps the samples' order has behind any
other. So a kill at any moment changes nothing.

A rewind's ``jump_from_n`` is in the numbers of the branch that it undoes, which has the jumps of
all rewinds before it. A checkpoint knows how many rewinds its own branch has (``Manifest.rewinds``)
and holds their jumps in the stream's state; those of the later ones are applied at the start, to
the segments of the branch that was undone: its mixture may have begun behind the checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lmscale.errors import DataError, NoSpaceError
from lmscale.files.jsonl import append_durable_row, read_rows
from lmscale.files.run_files import REWINDS_FILE
from lmscale.files.strangers import Count, Finite, ImplausibleError, Text, checked
from lmscale.stream.mixture import Jump, Segment

logger = logging.getLogger(__name__)


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
    known = len(read_rewinds(folder))
    if rewind.number != known + 1:
        raise DataError(
            f"{path}: it holds {known} rewinds, so this is not number {rewind.number}. Another "
            "process writes to the run's folder, or the file was edited."
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
