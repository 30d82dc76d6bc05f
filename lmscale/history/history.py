"""What decides which of a run's checkpoints still belong to it, in one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.checkpoint import Manifest
from lmscale.history.rewinds import Rewind, describe_undone, read_rewinds
from lmscale.history.starts import describe_superseded, read_starts


@dataclass(frozen=True, kw_only=True)
class History:
    """Of a whole run; each the oldest first."""

    rewinds: tuple[Rewind, ...] = ()
    starts: tuple[dict[str, Any], ...] = ()
    """Of its attempts, as attempts.jsonl has them."""

    def undone(self, manifest: Manifest) -> str | None:
        """Why a checkpoint is not to be gone on from, or None."""
        return describe_undone(manifest, self.rewinds) or describe_superseded(manifest, self.starts)

    def to_json(self) -> dict[str, Any]:
        return {
            "rewinds": [rewind.to_json() for rewind in self.rewinds],
            "starts": list(self.starts),
        }

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> History:
        return History(
            rewinds=tuple(map(Rewind.from_json, tree["rewinds"])),
            starts=tuple(tree["starts"]),
        )


def read_history(folder: str | Path) -> History:
    """From a run's folder. Raises ``DataError`` for a record that cannot be read."""
    folder = Path(folder)
    return History(
        rewinds=read_rewinds(folder),
        starts=tuple(read_starts(folder)),
    )
