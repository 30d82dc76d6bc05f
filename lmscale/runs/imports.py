"""What an import says of where its weights are from.

An import is a run's folder with one checkpoint, of step 0, that holds weights alone. Its
``import.json`` says this, its manifest's ``state``, and the manifests of all runs that begin with
it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lmscale.files.jsonl import read_object
from lmscale.files.run_files import IMPORT_FILE
from lmscale.files.strangers import EXACT, Count, ImplausibleError, Sha256, Text, checked


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A folder of another program's, as it was when it was imported."""

    __pydantic_config__ = EXACT
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


IMPORTED = "imported"  # its key in a manifest's ``state``
IMPORTS = TypeAdapter(Imported)


def read_import(folder: Path) -> Imported | None:
    """What the run's folder was imported from; None for any other run, and where it is damaged."""
    try:
        return checked(IMPORTS, read_object(folder / IMPORT_FILE))
    except ImplausibleError:
        return None


def describe_import(folder: Path) -> str | None:
    """``read_import`` in a few words."""
    imported = read_import(folder)
    return imported and imported.described


def refuse_training(folder: Path) -> str | None:
    """Why no run may train in the folder of an import; None where it is none."""
    imported = read_import(folder)
    return imported and (
        f"{folder} is an import of {imported.described}: weights to begin with, which stay as they "
        f"are. Set run.init_from to {folder}, and run.folder to a new place."
    )
