"""``RUN/held_out.jsonl``: the shards of a run's held-out sets, from which step on.

A figure says something beside another one only where both are of the same texts. Rank 0 writes a
row when a start finds a set that the run has not had, or one whose shards are other ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lmscale.errors import LmscaleError
from lmscale.files.jsonl import append_durable_row, sift_rows
from lmscale.files.run_files import HELD_OUT_FILE
from lmscale.files.run_rows import HELD_OUT

logger = logging.getLogger(__name__)
SHOWN = 12  # digits of a fingerprint


class Replaced(NamedTuple):
    """A set whose shards are not those that the run has measured."""

    name: str
    since: int  # the step from which on the run has measured the others
    before: str  # fingerprint of their manifest
    now: str

    @property
    def described(self) -> str:
        return (
            f"evaluation.sets.{self.name}: its shards (manifest {self.now[:SHOWN]}) are not those "
            f"that the run has measured since step {self.since:,} ({self.before[:SHOWN]})"
        )


def find_replaced(run_folder: Path, fingerprints: Mapping[str, str]) -> list[Replaced]:
    """The sets whose manifest is another one than that of the run's newest row of them.

    ``fingerprints``: set → fingerprint of its manifest, now.
    """
    known = _read(run_folder)
    return [
        Replaced(name, *known[name], now)
        for name, now in fingerprints.items()
        if name in known and known[name][1] != now
    ]


def record_sets(run_folder: Path, fingerprints: Mapping[str, str], *, step: int) -> None:
    """Say which shards are measured from a step on, where that is news; warn where it cannot be."""
    known = _read(run_folder)
    news = {n: now for n, now in fingerprints.items() if n not in known or known[n][1] != now}
    if not news:
        return
    try:
        row = {"step": step, "time": round(time.time(), 3), "sets": news}
        append_durable_row(run_folder / HELD_OUT_FILE, row)
    except (OSError, LmscaleError) as error:  # bookkeeping stops no training
        logger.warning("%s: a set that is replaced later will not be told: %s", run_folder, error)


def _read(run_folder: Path) -> dict[str, tuple[int, str]]:
    """Set → the step since when, and the fingerprint."""
    return {
        name: (row["step"], fingerprint)
        for row in sift_rows(run_folder / HELD_OUT_FILE, HELD_OUT).rows
        for name, fingerprint in row["sets"].items()
    }
