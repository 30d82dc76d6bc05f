"""A save that the caller waits for, for tests and benchmarks that look at what is written.

A run's own saves are made by ``lmscale/train/saver.py``, beside its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.snapshot import draft_manifest, live_copy
from lmscale.checkpoint.tier import Saved, SharedTier
from lmscale.checkpoint.writer import CheckpointWriter
from lmscale.engine.engine import Engine
from lmscale.ranks.mailbox import open_mailbox
from lmscale.ranks.ranks import Ranks
from lmscale.runs.lease import NO_LEASE


def save_checkpoint(
    place: Place, engine: Engine, *, step: int, identity: Mapping[str, Any], ranks: Ranks
) -> Saved:
    """Write a checkpoint of ``step`` and return when it is committed. All ranks together.

    A kill at any moment leaves the earlier checkpoints as they were. Raises ``NoSpaceError``,
    ``CheckpointError`` or ``TransientError`` on all ranks when any of them cannot write: then
    nothing is committed.
    """
    writer = CheckpointWriter(ranks, open_mailbox(ranks), lease=NO_LEASE, retries=0)
    try:
        draft = draft_manifest(engine, step=step, states={}, identity=identity)
        job = writer.start(step=step, tier=SharedTier(place), copy=live_copy(engine), draft=draft)
        return writer.wait(job)
    finally:
        writer.close()
