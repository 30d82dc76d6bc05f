"""The loss of a few known windows: measured when a run is saved, and again when it was loaded.

The weights' hash says that the bytes are back where they were. This says that the model which they
make computes what it did: with another attention kernel, precision or library it may not.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from lmscale.checkpoint.manifest import Probe
from lmscale.engine.engine import Engine
from lmscale.objective.scores import to_device
from lmscale.ranks.collectives import failing_together, sum_float64
from lmscale.stream.batches import Preparation, reads_partners
from lmscale.stream.stream import Stream
from lmscale.watch import heartbeat

# Of the loss. The windows go through the model one by one on every world size, so only kernels
# differ: bf16 keeps 8 bits of a number, and the mean over hundreds of tokens is far closer.
TOLERANCE = 1e-3
TOLERANCE_ACROSS = 5e-2  # precisions or kinds of devices


@torch.no_grad()
def measure_probe(
    engine: Engine, stream: Stream, preparation: Preparation, *, windows: int
) -> Probe:
    """The mean loss in nats of the run's first ``windows`` windows. All ranks together.

    Every rank does as many forward passes, as ZeRO 3 needs, and counts those that are its own.
    Raises ``DataError`` on all ranks where the windows cannot be read any more.
    """
    data = engine.mesh.data
    each = -(-windows // data.size)
    numbers = range(data.rank * each, (data.rank + 1) * each)
    # In the order in which the run began: later mixtures and jumps number other windows so.
    beginning = Stream(
        stream.config, seed=stream.seed, datasets=stream.datasets, segments=stream.segments[:1]
    )
    with failing_together():
        read = partial(beginning.read_rows, count=1, partners=reads_partners(preparation))
        rows = [read(min(n, windows - 1)) for n in numbers]
    nll = targets = 0.0
    with engine.evaluating():
        for n, row in zip(numbers, rows, strict=True):
            prepared = preparation.prepare(row)
            scores = engine(**to_device(prepared.arrays, engine.device))
            if n < windows:
                nll += float(scores.figures["loss"].total)
                targets += prepared.targets
            heartbeat.tick()
    nll, targets = sum_float64([nll, targets])
    return Probe(
        windows=windows,
        loss=nll / targets if targets else math.nan,
        precision=engine.config.precision,
        device=engine.device.type,
    )


def find_probe_difference(saved: Probe, now: Probe) -> str | None:
    """Why a loaded model is not the one that was saved, or None."""
    is_alike = (saved.precision, saved.device) == (now.precision, now.device)
    tolerance = TOLERANCE if is_alike else TOLERANCE_ACROSS
    before, after = saved.loss, now.loss
    if not math.isfinite(before) and not math.isfinite(after):
        return None  # as of fp16, or of windows without a target: it tells nothing
    # Of one of the two that is not finite, too.
    if abs(after - before) <= tolerance * max(1.0, min(abs(before), abs(after))):
        return None
    return (
        f"the loss of {saved.windows} known windows was {before:.6f} when it was saved and is "
        f"{after:.6f} now that it is loaded"
    )
