"""Where a run's first weights, or a distillation's teacher, came from, in every save."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from lmscale.files.strangers import EXACT, Count, Text
from lmscale.runs.imports import Imported


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which checkpoint of which run the first weights are; kept by every save."""

    __pydantic_config__ = EXACT
    run: Text
    checkpoint: Text  # its name, as its place has it
    step: Count
    weights: Text  # the hash of its masters, as its manifest has it
    imported: Imported | None = None  # what the run itself is an import of

    def to_json(self) -> dict[str, Any]:
        """Of a run that is no import as it was before there were any."""
        tree = asdict(self)
        if self.imported is None:
            del tree["imported"]
        return tree


ORIGIN = "initial"  # its key in a manifest's ``state``
ORIGINS = TypeAdapter(Origin)
