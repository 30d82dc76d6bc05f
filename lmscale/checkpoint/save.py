"""What a checkpoint says beside its tensors, and a save that the caller waits for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from lmscale.checkpoint.fragments import (
    owned_fragments,
    parameter_shapes,
    parameter_states,
    read_loss_scale,
    read_optimizer,
    replicated_tensors,
)
from lmscale.checkpoint.manifest import Manifest, RunStates
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.snapshot import Copy, parts_of
from lmscale.checkpoint.tier import Saved, SharedTier
from lmscale.checkpoint.writer import CheckpointWriter
from lmscale.engine.engine import Engine
from lmscale.ranks.mailbox import open_mailbox
from lmscale.ranks.ranks import Ranks
from lmscale.runs.lease import NO_LEASE


def draft_manifest(
    engine: Engine, *, step: int, states: RunStates, identity: Mapping[str, Any]
) -> Manifest:
    """The manifest of what the engine holds now, without what only the files' writers know."""
    return Manifest(
        step=step,
        parameters=parameter_shapes(engine),
        states=parameter_states(engine),
        replicated=replicated_tensors(engine),
        optimizer=read_optimizer(engine),
        loss_scale=read_loss_scale(engine),
        state={name: give() for name, give in states.items()},
        identity=dict(identity),
        written_by={
            "world_size": engine.mesh.size,
            "zero_stage": engine.config.zero_stage,
            "precision": engine.config.precision,
            "torch": torch.__version__,
            "time": time.time(),
        },
        is_finite=True,
        files=(),
    )


def live_copy(engine: Engine) -> Copy:
    """No copy at all: the engine's own tensors, which must not change until they are written."""
    parts, device = parts_of(owned_fragments(engine)), engine.device
    if device.type != "cuda":
        return Copy(parts=parts)
    torch.cuda.synchronize(device)
    # The writer's thread has a current device of its own, which is the first one.
    return Copy(parts=parts, ready=lambda: torch.cuda.set_device(device))


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
