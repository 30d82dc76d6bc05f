"""What a rank saves: a copy in host memory, so that training goes on at once, and the manifest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.fragments import (
    Fragment,
    owned_fragments,
    parameter_shapes,
    parameter_states,
    read_loss_scale,
    read_optimizer,
    replicated_tensors,
)
from lmscale.checkpoint.manifest import BUFFER, Manifest, RunStates
from lmscale.checkpoint.write_file import Part, arrange
from lmscale.engine.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Copy:
    """What a file shall hold, once ``ready`` has returned; the next ``take`` writes over it."""

    parts: list[Part]  # as ``arrange`` puts them
    ready: Callable[[], None] = lambda: None  # called by whoever reads them


def parts_of(fragments: Iterable[Fragment]) -> list[Part]:
    """The fragments' own tensors in the order of the file: no copies."""
    return arrange(
        Part(parameter=fragment.parameter, kind=kind, offset=fragment.offset, tensor=view.detach())
        for fragment in fragments
        for kind, view in fragment.tensors.items()
    )


class Snapshot:
    """One buffer as large as a rank's file, allocated before the first step and used again.

    On a GPU it is pinned, and the copies run beside the steps that follow: only what changes the
    weights waits for them.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._views: list[Tensor] = []
        self._shape: list[Any] = []
        self._is_pinned = False
        self._allocate(parts)

    def take(self, parts: Sequence[Part], before_update: list[Callable[[], None]]) -> Copy:
        """Copy the tensors. Whoever read the copy before must be done with it.

        ``before_update`` is what the engine calls before it changes the weights the next time.
        """
        if _shape_of(parts) != self._shape:
            logger.warning("what is saved has another shape than before: its host copy is renewed")
            self._allocate(parts)
        copies = [replace(part, tensor=view) for part, view in zip(parts, self._views, strict=True)]
        if self._stream is None:
            for part, view in zip(parts, self._views, strict=True):
                view.copy_(part.tensor)
            return Copy(parts=copies)
        copied = self._copy_beside(parts, self._stream)
        before_update.append(lambda: torch.cuda.current_stream(self._device).wait_event(copied))

        def ready() -> None:
            # The writer's thread has a current device of its own, the first one: to wait there
            # would take memory of that GPU for every rank of the node.
            torch.cuda.set_device(self._device)
            copied.synchronize()

        return Copy(parts=copies, ready=ready)

    def _copy_beside(self, parts: Sequence[Part], stream: torch.cuda.Stream) -> Any:
        """Start all copies, and return what is reached when they are done."""
        training = torch.cuda.current_stream(self._device)
        stream.wait_stream(training)
        pairs = list(zip(parts, self._views, strict=True))
        with torch.cuda.stream(stream):
            for part, view in pairs:  # a forward pass may write to these
                if part.kind == BUFFER:
                    view.copy_(part.tensor, non_blocking=True)
            training.wait_event(stream.record_event())
            for part, view in pairs:
                if part.kind != BUFFER:
                    view.copy_(part.tensor, non_blocking=True)
            return stream.record_event()

    def _allocate(self, parts: Sequence[Part]) -> None:
        self.close()
        total = sum(part.bytes for part in parts)
        # Every page is touched now: a first copy that makes the kernel find them takes three times
        # as long, and a machine that lacks the memory says so before the first step.
        self._buffer = torch.empty(total, dtype=torch.uint8).zero_()
        if self._stream is not None:
            self._is_pinned = _pin(self._buffer, self._device)
        self._views, self._shape = [], _shape_of(parts)
        end = 0
        for part in parts:
            start, end = end, end + part.bytes
            self._views.append(self._buffer[start:end].view(part.tensor.dtype))

    def close(self) -> None:
        """Give the memory back, once what is being copied has arrived."""
        if self._stream is not None:
            with suppress(RuntimeError):  # after a failure of the GPU nothing arrives any more
                self._stream.synchronize()
        if self._is_pinned:
            _cudart().cudaHostUnregister(self._buffer.data_ptr())
        self._is_pinned = False
        self._buffer, self._views, self._shape = torch.empty(0, dtype=torch.uint8), [], []


def _shape_of(parts: Sequence[Part]) -> list[Any]:
    return [(p.parameter, p.kind, p.offset, p.tensor.dtype, p.tensor.numel()) for p in parts]


def _pin(buffer: Tensor, device: torch.device) -> bool:
    """Not by torch's own allocator, which rounds up to a power of two: 70 GB would take 128."""
    if buffer.numel() == 0:
        return False
    error = int(_cudart().cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0))
    if error:
        with suppress(RuntimeError):  # CUDA keeps the error, and says it once of the next kernel
            torch.ones(1, device=device).add_(1)
        logger.warning(
            "%.1f GB of host memory could not be pinned (CUDA error %d; `ulimit -l`?): training "
            "waits for the copy at every save",
            *(buffer.numel() / 1e9, error),
        )
    return error == 0


def _cudart() -> Any:
    return torch.cuda.cudart()


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
