"""The mixture of a run's sources and what has become of it, as ``runs status`` shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmscale.errors import CheckpointError, DataError
from lmscale.stream.ledger import load_record
from lmscale.stream.mixture import Segment
from lmscale.stream.mixture_changes import (
    MixtureChange,
    describe_change,
    describe_shares,
    find_changes,
    shares_of,
)


@dataclass(frozen=True, kw_only=True)
class Mixtures:
    first: Segment
    changes: Sequence[tuple[MixtureChange, int | None]]  # and the step, where it is known

    def to_json(self) -> dict[str, Any]:
        changes = [{**asdict(change), "step": step} for change, step in self.changes]
        return {"shares": shares_of(self.first), "changes": changes}

    def lines(self) -> Iterator[str]:
        """None of a run that has read a single source all along."""
        if len(self.first.quotas) > 1 or self.changes:
            yield describe_shares(self.first)
        for change, step in self.changes:
            yield describe_change(change, step)


def read_mixtures(run: Path, steps: Mapping[int, int]) -> Mixtures | None:
    """By the run's last start; ``steps``: the step of a change by its first sample. None where no
    start has got so far, or where its record is damaged, of which the audit speaks.
    """
    try:
        state, _ = load_record(run)
    except (CheckpointError, DataError):
        return None
    changes = [(change, steps.get(change.from_n)) for change in find_changes(state.segments)]
    return Mixtures(first=state.segments[0], changes=changes)
