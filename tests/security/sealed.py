"""Checkpoints that are sealed by whoever wrote them: all of their hashes are right."""

from __future__ import annotations

import hashlib
import json

import torch
from safetensors.torch import save

from lmscale.checkpoint.manifest import FileEntry, Manifest
from lmscale.checkpoint.places.place import LocalPlace

WEIGHTS = torch.arange(8, dtype=torch.float32)
SOUND = save({"w:master:0": WEIGHTS})


def write(
    root, content=SOUND, *, name="rank-00000.safetensors", fragments=(("w", 0, 8),), **changes
):
    """A checkpoint of one file, sealed by whoever wrote it: all of its hashes are right."""
    folder = root / f"step-{changes.get('step', 7):09d}"
    folder.mkdir(parents=True)
    (folder / "rank-00000.safetensors").write_bytes(content)
    manifest = draft(content, name=name, fragments=fragments, **changes)
    (folder / "manifest.json").write_text(json.dumps(manifest.to_json()))
    return LocalPlace(root)


def draft(content=SOUND, *, name="rank-00000.safetensors", fragments=(("w", 0, 8),), **changes):
    entry = FileEntry(
        name=name,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        fragments=tuple(fragments),
    )
    return Manifest(
        **{
            "step": 7,
            "parameters": {"w": (2, 4)},
            "states": {"w": ("master",)},
            "optimizer": {"kind": "adamw", "step": 7},
            "loss_scale": None,
            "state": {},
            "identity": {},
            "written_by": {},
            "is_finite": True,
            "files": (entry,),
            **changes,
        }
    )


def seal(**changes):
    """The text of a manifest with these of its values, whatever they are, and a hash that fits.

    ``file`` changes those of its one file.
    """
    tree = draft().to_json()
    del tree["sha256"]
    tree["files"][0] |= changes.pop("file", {})
    tree |= changes
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return json.dumps(tree | {"sha256": hashlib.sha256(text.encode()).hexdigest()})
