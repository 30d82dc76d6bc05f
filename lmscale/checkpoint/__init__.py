"""Elastic checkpoints: one layout for every ZeRO stage, world size and precision, with no pickle
in it.
"""

from lmscale.checkpoint.layout import Manifest, list_steps
from lmscale.checkpoint.resume import load_checkpoint, load_model_weights
from lmscale.checkpoint.store import (
    Saved,
    delete_old_checkpoints,
    discard_uncommitted,
    find_resumable,
    load_manifest,
    save_checkpoint,
)

__all__ = [
    "Manifest",
    "Saved",
    "delete_old_checkpoints",
    "discard_uncommitted",
    "find_resumable",
    "list_steps",
    "load_checkpoint",
    "load_manifest",
    "load_model_weights",
    "save_checkpoint",
]
