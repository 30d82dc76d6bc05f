"""Silent corruption that was found, in ``RUN/corruptions.jsonl``, and the checkpoints it may taint.

At ZeRO 0 every rank holds, and saves its share of, masters and states that all should hold alike. A
value that goes wrong on one rank is in every save from then on, and loaded from there it is alike
on all ranks: no later comparison can see it. So what was written between the last comparison
without a difference and the one that found it is never gone on from.

At ZeRO 1 to 3 a master has one owner, and what is compared are copies made from it: a wrong copy is
dealt out anew by the next update and is in no checkpoint. There nothing is tainted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmscale.checkpoint import Manifest
from lmscale.config import RunConfig
from lmscale.errors import CheckpointError, DataError, NoSpaceError
from lmscale.files.jsonl import append_durable_row, read_rows
from lmscale.files.run_files import CORRUPTIONS_FILE
from lmscale.ranks.ranks import Ranks, name_ranks

logger = logging.getLogger(__name__)

_MAY_HOLD = "may hold the wrong values of"


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Ranks that were found to differ."""

    clean_step: int
    """What a save of this step holds was alike on all ranks: of the last comparison without a
    difference, or where the attempt began or was rewound to.
    """
    at_step: int
    """Before whose update the difference was found."""
    zero_stage: int
    attempt: int = 0
    """As ``written_by`` of a manifest has it, with its time; 0 where there was none."""
    attempt_time: float = 0.0
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    """Of these ranks."""
    is_certain: bool
    """A majority told which ranks were wrong; else all that were not alike are named."""
    names: tuple[str, ...]
    """Some of what they held differently."""
    time: float
    """Unix time."""

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> Corruption:
        """Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what is no row."""
        numbers = {
            key: int(tree[key]) for key in ("clean_step", "at_step", "zero_stage", "attempt")
        }
        return Corruption(
            **numbers,
            attempt_time=float(tree["attempt_time"]),
            ranks=tuple(map(int, tree["ranks"])),
            hosts=tuple(map(str, tree["hosts"])),
            is_certain=bool(tree["is_certain"]),
            names=tuple(map(str, tree["names"])),
            time=float(tree["time"]),
        )


def read_corruptions(folder: str | Path) -> tuple[Corruption, ...]:
    """Oldest first; none where there is no file. Raises ``DataError``."""
    path = Path(folder) / CORRUPTIONS_FILE
    found = []
    for number, tree in enumerate(read_rows(path), start=1):
        try:
            found.append(Corruption.from_json(tree))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {number}: not a corruption ({type(error).__name__}: {error}). "
                "Restore the file: which checkpoints may be gone on from follows from it."
            ) from None
    return tuple(found)


def record_corruption(folder: str | Path, found: Corruption) -> None:
    """Append the row; it is durable on return. Rank 0 only, which holds the run's lease."""
    append_durable_row(Path(folder) / CORRUPTIONS_FILE, asdict(found), no_space=NoSpaceError)


def describe_tainted(manifest: Manifest, corruptions: Sequence[Corruption]) -> str | None:
    """Why a checkpoint may hold wrong values for good, or None.

    One of the same attempt alone: a later one that does these steps again began before them. The
    save of the clean step itself counts as good, though its one update came after the comparison.
    """
    writer = manifest.written_by
    key = (writer.get("attempt", 0), writer.get("attempt_time", 0.0))
    for one in corruptions:
        is_same_attempt = key == (one.attempt, one.attempt_time)
        is_between = one.clean_step < manifest.step < one.at_step
        if one.zero_stage == 0 and is_same_attempt and is_between:
            return (
                f"{_MAY_HOLD} {name_ranks(one.ranks)} on {', '.join(one.hosts)}: "
                f"the ranks were found to differ before the update of step {one.at_step}, and were "
                f"alike for the last time at step {one.clean_step}"
            )
    return None


def find_untainted(
    steps: Sequence[int], config: RunConfig, ranks: Ranks, *, newest: int, first_step: int
) -> int | None:
    """The checkpoint that retention must keep: a difference found next would leave no newer one.

    Of the last comparison before the save of step ``newest``, or of ``first_step``, where the
    attempt began.
    """
    every_steps = config.guard.compare_every_steps
    if config.engine.zero_stage != 0 or ranks.world_size == 1 or every_steps == 0:
        return None
    clean_step = max(first_step, newest // every_steps * every_steps)
    return max((step for step in steps if step <= clean_step), default=None)


def refuse_scratch(reasons: Iterable[str]) -> None:
    """Raise ``CheckpointError`` where nothing is left to go on from but what may hold wrong values.

    ``reasons``: why each checkpoint was passed over.
    """
    tainted = [reason for reason in reasons if _MAY_HOLD in reason]
    if tainted:
        raise CheckpointError(
            [
                *tainted,
                "No other checkpoint is left, and the run does not begin anew by itself. Move "
                "these folders away to have it do so; or, if you trust them, move away "
                f"{CORRUPTIONS_FILE} in the run's folder.",
            ]
        )
