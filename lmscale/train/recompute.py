"""A forward pass done twice: arithmetic that does not come out the same is a fault of the machine.

In ``train_steps``, where ``guard.recompute_every_steps`` says so, right before a step's gradient is
accumulated; a rank that does not agree votes ``RANKS_DIFFER`` in the step's reduction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmscale.errors import CorruptionError
from lmscale.ranks.attempt import node_name
from lmscale.watch import heartbeat


def recompute_matches(forward: Callable[[], Tensor], reseed: Callable[[], None]) -> bool:
    """Whether two passes give the same bits; all ranks call it together, for ZeRO 3 gathers.

    Both passes are without gradient: with it a device may choose another kernel, whose last bits
    may differ. ``forward`` returns what is compared; ``reseed`` sets the random numbers that a pass
    draws, and is called once more at the end, so that nothing in the step shows that this was here.
    """
    heartbeat.phase("recompute")
    passes = []
    with torch.no_grad():
        for _ in range(2):
            reseed()
            passes.append(forward().detach().clone())
            heartbeat.tick()
    reseed()
    first, again = (value.reshape(-1).view(torch.uint8) for value in passes)
    return bool(torch.equal(first, again))  # by the bits: a loss that is not a number agrees too


def recompute_error(step: int) -> CorruptionError:
    """Of the rank that did not agree."""
    host = node_name()
    return CorruptionError(
        f"On {host} the forward pass of step {step} did not give the same bits when it was done "
        "again: arithmetic or memory failed there without an error, so the run ends here and "
        f"nothing is saved. Check {host} (ECC counters: nvidia-smi -q -d ECC, dmesg; temperature "
        "and power), leave it out until it is known to be good (`exclude` in the cluster's "
        "profile), and start again: the run goes on from the newest checkpoint. If it happens on "
        "every node, the model's forward pass is not deterministic: set "
        "guard.recompute_every_steps to 0.",
        summary=f"a forward pass on {host} did not repeat",
        bad_nodes={host: "a forward pass done twice gave two results"},
    )
