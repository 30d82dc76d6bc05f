"""Small checkpoints of known content, in any place, without an engine or ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.find import Candidate, Search
from lmscale.checkpoint.layout import fragment_file
from lmscale.checkpoint.manifest import MASTER, FileEntry, Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.places.remote_place import RemotePlace
from lmscale.checkpoint.write_file import Part, arrange, write_file
from lmscale.files.cache import NodeCache
from lmscale.ranks.fingerprint import fingerprint
from lmscale.ranks.ranks import Ranks

IDENTITY = {"run": "tiny", "tokenizer": "t", "model": {"width": 32}}
ELEMENTS = 40


def place_at(url: str, folder: Path, retries: int = 2) -> RemotePlace:
    """``folder`` takes the files that are being read."""
    cache = NodeCache(folder=folder / "cache", max_bytes=2**40, retries=retries)
    return RemotePlace(url, retries=retries, cache=cache)


def weights_of(step: int) -> Tensor:
    """[8, 5], another one for every step."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 5, generator=generator)


def parts_of_rank(step: int, rank: int, world_size: int) -> list[Part]:
    """What one rank has to write."""
    flat = weights_of(step).view(-1)
    start, end = ELEMENTS * rank // world_size, ELEMENTS * (rank + 1) // world_size
    return arrange(
        Part(parameter="w", kind=kind, offset=start, tensor=(flat[start:end] * factor).contiguous())
        for kind, factor in ((MASTER, 1), ("exp_avg", 2))
    )


def write_part(place: Place, step: int, rank: int, world_size: int) -> FileEntry:
    """The file of one rank."""
    parts = parts_of_rank(step, rank, world_size)
    return write_file(place, step, fragment_file(rank, "local"), parts, retries=0)


def manifest_of(step: int, files: list[FileEntry], **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "step": step,
        "parameters": {"w": (8, 5)},
        "states": {"w": (MASTER, "exp_avg")},
        "optimizer": {"kind": "adamw", "step": step},
        "loss_scale": None,
        "state": {"progress": {"step": step, "n": 12 * step, "tokens": 0, "skipped_steps": 0}},
        "identity": IDENTITY,
        "written_by": {"world_size": len(files), "zero_stage": 1, "precision": "fp32"},
        "is_finite": True,
        "weights": f"{fingerprint(weights_of(step).view(-1), name='w'):016x}",
        "files": tuple(files),
    }
    return Manifest(**(fields | changes))


def save(place: Place, step: int, *, world_size: int = 2, **changes: Any) -> Manifest:
    """A whole save, as the ranks do it."""
    place.begin(step)
    files = [write_part(place, step, rank, world_size) for rank in range(world_size)]
    manifest = manifest_of(step, files, **changes)
    assert place.commit(step, render(manifest)) == render(manifest)
    return manifest


def render(manifest: Manifest) -> bytes:
    return manifest.to_bytes()


def search(*places: Place, **settings: Any) -> Search:
    wanted: dict[str, Any] = {"identity": IDENTITY} | settings
    return Search(places, Ranks(), **wanted)


def first(*places: Place, **settings: Any) -> Candidate | None:
    return next(search(*places, **settings), None)


def step_taken(*places: Place, **settings: Any) -> int | None:
    found = first(*places, **settings)
    return None if found is None else found.manifest.step
