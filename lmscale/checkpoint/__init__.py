"""Elastic checkpoints: one layout for every ZeRO stage, world size and precision, no pickle in it.

::

    Engine ── fragments.py ──▶ Snapshot ── CheckpointWriter ──▶ Tier: rank-*.safetensors
    RunStates ── draft_manifest ──────────── complete, commit ──▶ Tier: manifest.json, last
    Place ── Search: the newest that verifies ──▶ Candidate ── load_checkpoint ──▶ Engine

In go an engine of any topology and what the run keeps beside it (``RunStates``); out comes the
same in an engine of any other, or tensor by tensor (``load.open_weights``). ``manifest.py`` says
what a checkpoint says of itself, ``retention.py`` which ones stay. Read ``writer.py`` first.
"""
