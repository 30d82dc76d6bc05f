"""Elastic checkpoints: one layout for every ZeRO stage, world size and precision, no pickle in it.

::

    Engine ── fragments.py ──▶ Snapshot ── CheckpointWriter ──▶ Tier: rank-*.safetensors
    RunStates ── draft_manifest ──────────── complete, commit ──▶ Tier: manifest.json, last
    Place ── Search: the newest that verifies ──▶ Found ── load_checkpoint ──▶ Engine

In go an engine of any topology and what the run keeps beside it (``state.RunState``); out comes the
same in an engine of any other, or tensor by tensor (``load.iterate_weights``). ``manifest.py`` says
what a checkpoint says of itself, ``retention.py`` which ones stay. Read ``save.py`` first.
"""

from lmscale.checkpoint.find import find_resumable, load_manifest
from lmscale.checkpoint.load import load_checkpoint, load_model_weights
from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.places.place import LocalPlace, Place
from lmscale.checkpoint.places.run_place import open_place
from lmscale.checkpoint.retention import delete_old_checkpoints, free_space
from lmscale.checkpoint.save import save_checkpoint

__all__ = [
    "LocalPlace",
    "Manifest",
    "Place",
    "delete_old_checkpoints",
    "find_resumable",
    "free_space",
    "load_checkpoint",
    "load_manifest",
    "load_model_weights",
    "open_place",
    "save_checkpoint",
]
