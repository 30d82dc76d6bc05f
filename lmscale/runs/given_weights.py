"""Folders of weights alone, to begin with: what they say of where these are from.

Such a folder is a run's with one checkpoint, of step 0. The weights were imported, which its
``import.json`` says, or made of another run's (pruned, or some of its layers), which its
``made.json`` says. The same stands in the manifest's ``state``, and of an import in the manifests
of all runs that begin with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lmscale.files.jsonl import read_object
from lmscale.files.run_files import IMPORT_FILE, MADE_FILE
from lmscale.files.strangers import EXACT, Count, ImplausibleError, Sha256, Text, Value, checked


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What both have."""

    __pydantic_config__ = EXACT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Imported(_Given):
    """A folder of another program's, as it was when it was imported."""

    folder: Text  # its name, without the way there
    model_type: Text  # of transformers
    transformers: Text  # the version that its config.json names; "": none
    dtype: Text  # that its weights are stored in
    rows: Count  # of its embedding
    files: dict[Text, Sha256]
    drawn: tuple[Text, ...] = ()  # parameters that it lacks: random values
    bos: Count | None = None  # the id that its tokenizer puts before every text

    @property
    def described(self) -> str:
        version = f", transformers {self.transformers}" if self.transformers else ""
        return f"{self.folder} ({self.model_type}{version})"


@dataclass(frozen=True, kw_only=True)
class Made(_Given):
    """The checkpoint that the weights are made of, and how."""

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


IMPORTED, MADE = "imported", "made"  # their keys in a manifest's ``state``
IMPORTS, MADES = TypeAdapter(Imported), TypeAdapter(Made)


def read_import(folder: Path) -> Imported | None:
    """What the run's folder was imported from; None for any other run, and where it is damaged."""
    return _read(folder / IMPORT_FILE, IMPORTS)


def read_made(folder: Path) -> Made | None:
    """What the run's weights were made of; None for any other run, and where it is damaged."""
    return _read(folder / MADE_FILE, MADES)


def _read(path: Path, kind: TypeAdapter[Value]) -> Value | None:
    try:
        return checked(kind, read_object(path))
    except ImplausibleError:
        return None


def describe_import(folder: Path) -> str | None:
    """``read_import`` in a few words."""
    imported = read_import(folder)
    return imported and imported.described


def describe_made(folder: Path) -> str | None:
    """``read_made`` in a few words."""
    made = read_made(folder)
    return made and made.described


def refuse_training(folder: Path) -> str | None:
    """Why no run may train in a folder of given weights; None where it is none."""
    if imported := describe_import(folder):
        what = f"is an import of {imported}: weights to begin with, which stay as they are"
    elif made := describe_made(folder):
        what = f"holds weights to begin with, which stay as they are ({made})"
    else:
        return None
    return f"{folder} {what}. Set run.init_from to {folder}, and run.folder to a new place."
