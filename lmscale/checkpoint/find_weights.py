"""Which checkpoint's weights are evaluated, exported or begun with. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmscale.checkpoint.differences import MAX_NAMED, describe_differences
from lmscale.checkpoint.find import Undone, find_damage, find_sound, load_manifest, nothing_undone
from lmscale.checkpoint.layout import find_gaps
from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.errors import CheckpointError
from lmscale.ranks.collectives import failing_together, gather_json
from lmscale.ranks.ranks import Ranks


def find_weights(
    place: Place,
    step: int | None = None,
    *,
    ranks: Ranks,
    origin: str | None = None,
    undone: Undone = nothing_undone,
    identity: Mapping[str, Any] | None = None,
) -> Manifest:
    """The checkpoint of ``step``, verified; None: the newest that verifies and is finite. Its
    fragments cover every tensor, and it is of ``identity``. All ``ranks`` together.
    """
    if step is None:
        manifest = find_sound(place, ranks, undone=undone)
        if manifest is None:
            raise no_checkpoint(origin or place.location)
    else:
        with failing_together():
            manifest = load_manifest(place, step)
            damage = find_damage(place, step, manifest.files[ranks.rank :: ranks.world_size])
            if damage:
                raise CheckpointError([f"{problem}." for problem in damage])
        if len({*gather_json(manifest.hash)}) > 1:
            raise CheckpointError(f"{place.name_of(step)} does not look the same to all ranks.")
    now = {key: value for key, value in (identity or {}).items() if key in manifest.identity}
    saved = {key: manifest.identity[key] for key in now}
    if differences := describe_differences(saved, now, where=place.name_of(manifest.step)):
        advice = f"The config.yaml or the tokenizer of {origin} is not what it was trained with."
        raise CheckpointError([*differences, advice])
    # Here no model says how large a tensor is: memory is taken only for what the files hold.
    gaps = find_gaps(manifest)
    if gaps:
        where = place.name_of(manifest.step)
        raise CheckpointError([f"{where}: {gap}." for gap in gaps[:MAX_NAMED]])
    return manifest


def no_checkpoint(origin: str) -> CheckpointError:
    return CheckpointError(f"{origin} has no checkpoint yet. Train it first: lmscale train CONFIG")
