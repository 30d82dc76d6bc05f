"""How far a run's checkpoints say it had come: read as JSON, without the code that wrote them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lmscale.files.strangers import is_count, parse_json


@dataclass(frozen=True, kw_only=True)
class SavedProgress:
    """One committed checkpoint."""

    name: str
    """Its folder's."""
    step: int
    """Steps done."""
    n: int
    """Samples used."""
    sha256: str
    """Of its manifest: another save of the same step has another one."""


def iterate_saved(run_folder: str | Path) -> Iterator[SavedProgress]:
    """The run's checkpoints, newest step first; what has no readable manifest is passed over."""
    paths = Path(run_folder).glob("checkpoints/step-*/manifest.json")
    # The steps are zero-padded; a longer number is a later step all the same.
    for path in sorted(paths, key=lambda p: (len(p.parent.name), p.parent.name), reverse=True):
        try:
            content = path.read_bytes()
            progress = parse_json(content)["state"]["progress"]
            step, n = progress["step"], progress["n"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_count(step) and is_count(n):
            sha256 = hashlib.sha256(content).hexdigest()
            yield SavedProgress(name=path.parent.name, step=step, n=n, sha256=sha256)
