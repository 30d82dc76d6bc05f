"""What lmscale says of weights that it has made of another run's: pruned, or some of its layers.

Such a folder is a run's with one checkpoint, of step 0, that holds weights alone, as an import's.
Its ``made.json`` says this, and its manifest's ``state``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lmscale.files.jsonl import read_object
from lmscale.files.run_files import MADE_FILE
from lmscale.files.strangers import EXACT, Count, ImplausibleError, Text, checked


@dataclass(frozen=True, kw_only=True)
class Made:
    """The checkpoint that the weights are made of, and how."""

    __pydantic_config__ = EXACT
    run: Text  # the name of the run
    checkpoint: Text  # its name, as its place has it
    step: Count
    weights: Text  # the hash of its masters, as its manifest has it
    how: Text  # in words, such as "pruned: …"
    bos: Count | None = None  # the id that begins documents in what the run has read
    has_read: bool = False  # whether it has read any, so that its bos, or none, is what it learned

    @property
    def described(self) -> str:
        return f"{self.how}; of {self.checkpoint} (run {self.run})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


MADE = "made"  # its key in a manifest's ``state``
MADES = TypeAdapter(Made)


def read_made(folder: Path) -> Made | None:
    """What the run's weights were made of; None for any other run, and where it is damaged."""
    try:
        return checked(MADES, read_object(folder / MADE_FILE))
    except ImplausibleError:
        return None


def describe_made(folder: Path) -> str | None:
    """``read_made`` in a few words."""
    made = read_made(folder)
    return made and made.described


def refuse_training_of_made(folder: Path) -> str | None:
    """Why no run may train in a folder of such weights; None where it is none."""
    made = read_made(folder)
    return made and (
        f"{folder} holds weights to begin with, which stay as they are ({made.described}). Set "
        f"run.init_from to {folder}, and run.folder to a new place."
    )
