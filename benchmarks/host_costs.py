"""What a training step asks of the host, counted while it runs: waits for the device, operators.

A wait is an operator or a method of a tensor whose answer the host needs: ``item``, ``bool``,
``tolist``, ``nonzero``, a copy to the CPU. On a CPU nothing waits, but the same code is run.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operators whose result, or the shape of it, the host has to know.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
READING = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class HostCosts(TorchDispatchMode):
    """``operators``: that were dispatched, each a launch on a GPU or none; ``waits``: by place."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        if func in WAITING:
            self.waits[_caller()] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READING:
            self.waits[_caller()] += 1
        return func(*args, **(kwargs or {}))


def _caller() -> str:
    """The innermost function of lmscale's or DeepSpeed's that is running, as file:function."""
    for frame in reversed(traceback.extract_stack()):
        for root in ("/lmscale/", "/deepspeed/"):
            if root in frame.filename:
                place = frame.filename.rpartition(root)[2]
                return f"{root.strip('/')}/{place}:{frame.name}"
    return "elsewhere"


@contextmanager
def counting() -> Iterator[HostCosts]:
    """Yields what counts while the block runs, backward passes included."""
    operators = HostCosts()
    with operators, _Methods(operators.waits):
        yield operators
