"""What a checkpoint says beside its tensors, and a save that the caller waits for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lmscale.checkpoint.fragments import (
    owned_fragments,
    parameter_shapes,
    parameter_states,
    replicated_tensors,
)
from lmscale.checkpoint.job import Saved
from lmscale.checkpoint.manifest import REGULAR, Manifest, Probe
from lmscale.checkpoint.optimizer_state import read_loss_scale, read_optimizer
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.snapshot import Copy, parts_of
from lmscale.checkpoint.state import RunState
from lmscale.checkpoint.tier import SharedTier
from lmscale.checkpoint.writer import CheckpointWriter
from lmscale.engine.engine import Engine
from lmscale.ranks.mailbox import open_mailbox
from lmscale.ranks.ranks import Ranks
from lmscale.runs.lease import NO_LEASE, Lease


def draft_manifest(
    engine: Engine,
    *,
    step: int,
    states: Iterable[RunState] = (),
    identity: Mapping[str, Any],
    reason: str = REGULAR,
    rewinds: int = 0,
    probe: Probe | None = None,
    written_by: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest of what the engine holds now, without what only the files' writers know.

    ``written_by``: what it says of its writer besides the topology.
    """
    return Manifest(
        step=step,
        parameters=parameter_shapes(engine),
        states=parameter_states(engine),
        replicated=replicated_tensors(engine),
        optimizer=read_optimizer(engine),
        loss_scale=read_loss_scale(engine),
        state={state.name: state.to_json() for state in states},
        identity=dict(identity),
        written_by={**_describe_writer(engine), **(written_by or {})},
        is_finite=True,
        reason=reason,
        rewinds=rewinds,
        probe=probe,
        files=(),
    )


def live_copy(engine: Engine) -> Copy:
    """No copy at all: the engine's own tensors, which must not change until they are written."""
    device = engine.device
    if device.type != "cuda":
        return Copy(parts=parts_of(owned_fragments(engine)), ready=lambda: None)
    torch.cuda.synchronize(device)
    # The writer's thread has a current device of its own, which is the first one.
    return Copy(
        parts=parts_of(owned_fragments(engine)), ready=lambda: torch.cuda.set_device(device)
    )


def save_checkpoint(
    place: Place,
    engine: Engine,
    *,
    step: int,
    states: Iterable[RunState] = (),
    identity: Mapping[str, Any],
    ranks: Ranks,
    lease: Lease = NO_LEASE,
    retries: int = 0,
) -> Saved:
    """Write a checkpoint of ``step`` and return when it is committed. All ranks together.

    A kill at any moment leaves the earlier checkpoints as they were. Raises ``NoSpaceError``,
    ``CheckpointError`` or ``TransientError`` on all ranks when any of them cannot write, and
    ``LeaseLostError`` when a newer copy of the run is there: then nothing is committed.
    """
    writer = CheckpointWriter(ranks, open_mailbox(ranks), lease=lease, retries=retries)
    try:
        draft = draft_manifest(engine, step=step, states=states, identity=identity)
        job = writer.start(step=step, tier=SharedTier(place), copy=live_copy(engine), draft=draft)
        return writer.wait(job)
    finally:
        writer.close()


def _describe_writer(engine: Engine) -> dict[str, Any]:
    return {
        "world_size": engine.mesh.size,
        "zero_stage": engine.config.zero_stage,
        "precision": engine.config.precision,
        "torch": torch.__version__,
        "time": time.time(),
    }
