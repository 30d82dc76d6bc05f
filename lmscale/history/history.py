"""What decides which of a run's checkpoints still belong to it, in one value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lmscale.checkpoint import Manifest
from lmscale.history.rewinds import Rewind, describe_undone, read_rewinds
from lmscale.history.starts import Start, describe_superseded, read_starts


@dataclass(frozen=True, kw_only=True)
class History:
    """Of a whole run; each the oldest first."""

    rewinds: tuple[Rewind, ...] = ()
    starts: tuple[Start, ...] = ()

    def undone(self, manifest: Manifest) -> str | None:
        """Why a checkpoint is not to be gone on from, or None."""
        return describe_undone(manifest, self.rewinds) or describe_superseded(manifest, self.starts)

    def to_json(self) -> dict[str, Any]:
        """As it travels from rank 0 to the others, whose ``HISTORY`` reads it."""
        return asdict(self)


HISTORY = TypeAdapter(History)


def read_history(folder: str | Path) -> History:
    """From a run's folder. Raises ``DataError`` for a record that cannot be read."""
    folder = Path(folder)
    return History(
        rewinds=read_rewinds(folder),
        starts=tuple(read_starts(folder)),
    )
