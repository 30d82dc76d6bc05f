"""Which checkpoint of another run a run began with: in its manifests, and in ``RUN/origin.json``.

The manifests' ``state`` says it under ``INITIAL`` of a run whose first weights they were
(``run.init_from``), and under ``BRANCH`` of one that goes on from there as if it were that run
(``lmscale runs branch``); ``teacher`` of a distillation is of the same form. The file has both for
whoever does not read manifests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lmscale.files.atomic import write_json
from lmscale.files.jsonl import read_object
from lmscale.files.run_files import ORIGIN_FILE
from lmscale.files.strangers import EXACT, Count, Flag, ImplausibleError, Text, checked
from lmscale.runs.given_weights import Imported

INITIAL, BRANCH = "initial", "branch"
LABELS = {BRANCH: "branch of", INITIAL: "began with"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A checkpoint of another run; kept by every save."""

    __pydantic_config__ = EXACT
    run: Text
    checkpoint: Text  # its name, as its place has it
    step: Count
    weights: Text  # the hash of its masters, as its manifest has it
    imported: Imported | None = None  # what the run itself is an import of
    optimizer: Flag = False  # whether the optimizer's states came along

    def to_json(self) -> dict[str, Any]:
        """Without what came later and says nothing of this one."""
        tree = asdict(self)
        if self.imported is None:
            del tree["imported"]
        if not self.optimizer:
            del tree["optimizer"]
        return tree


ORIGINS = TypeAdapter(Origin)


def describe_origin(name: str, origin: Origin) -> str:
    """In a few words, behind its label."""
    if name == BRANCH:
        return f"run {origin.run} from step {origin.step:,} on ({origin.checkpoint})"
    imported = f", an import of {origin.imported.described}" if origin.imported else ""
    what = "the weights and the optimizer's states" if origin.optimizer else "the weights"
    return f"{what} of {origin.checkpoint} (run {origin.run}{imported})"


def save_origins(run_folder: Path, origins: Mapping[str, Origin | None]) -> None:
    """Write the file, or see that there is none, of a run that began by itself."""
    tree = {name: origin.to_json() for name, origin in origins.items() if origin is not None}
    path = run_folder / ORIGIN_FILE
    if not tree:
        path.unlink(missing_ok=True)
    elif tree != read_object(path):
        write_json(path, tree)


def read_origins(run_folder: Path) -> dict[str, Origin]:
    """What the run began with; what cannot be read of it is left out: nothing rests on it."""
    return dict(_read(run_folder))


def _read(run_folder: Path) -> Iterator[tuple[str, Origin]]:
    tree = read_object(run_folder / ORIGIN_FILE)
    for name in LABELS:
        try:
            if name in tree:
                yield name, checked(ORIGINS, tree[name])
        except ImplausibleError:
            continue
