"""Rank 0 turns the ranks' reports into a manifest, and commits the manifest once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmscale.checkpoint.layout import find_gaps
from lmscale.checkpoint.manifest import FileEntry, Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.errors import CheckpointError
from lmscale.files import fault_points
from lmscale.ranks.fingerprint import add_fingerprints
from lmscale.runs.lease import Lease


class ForeignManifestError(CheckpointError):
    """An older copy's manifest came late into the folder of a save by the run's holder."""


def complete(draft: Manifest | None, reports: list[dict[str, Any]]) -> Manifest:
    """The manifest, with what every rank has told of its file."""
    assert draft is not None, "rank 0 has a draft"
    manifest = replace(
        draft,
        is_finite=all(row["is_finite"] for row in reports),
        weights=f"{add_fingerprints(row['weights'] for row in reports):016x}",
        files=tuple(FileEntry(**row["entry"]) for row in reports),
    )
    gaps = find_gaps(manifest)
    if gaps:
        raise AssertionError(f"the ranks' fragments do not cover the model: {gaps[:3]}")
    return manifest


def commit(place: Place, step: int, manifest: bytes, lease: Lease) -> None:
    """Write the manifest, unless the run is another copy's at the last moment.

    And after it: a write that a broken network holds up for minutes finds either that the folder is
    gone (``discard_uncommitted``), or the other copy's manifest, which it does not replace.
    """
    lease.check()
    fault_points.hit("save.commit", step=step)
    if place.commit(step, manifest) != manifest:
        lease.check()
        raise ForeignManifestError(
            f"{place.name_of(step)} was committed by somebody else meanwhile."
        )
