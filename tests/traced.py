"""What torch itself allocates in a forward and backward pass, on real or on fake tensors."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmscale.config import RunConfig
from lmscale.model.family import build_model_on
from lmscale.objective.objective import build_scoring
from lmscale.plan.objectives import read_objective
from lmscale.train.initial import freeze_parameters

# Of auto the plan knows no device here, and takes bf16.
DTYPES = {"auto": torch.bfloat16, "bf16": torch.bfloat16, "fp32": torch.float32}


class LiveBytes(TorchDispatchMode):
    """The bytes of all storages that operators have made and that still exist, and their most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._meet(leaf)
        return result

    def overlook(self, tensors: Any) -> None:
        """Count none of these."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage()._cdata)

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        nbytes = storage.nbytes()
        self._known.add(key)
        self.live += nbytes
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._forget, key, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.live -= nbytes


class Traced(NamedTuple):
    kept: int
    forward: int
    backward: int


def trace(config: RunConfig, *, micro_windows: int, is_fake: bool) -> Traced:
    """The pass of the configuration's own module. Weights' gradients are dropped as they come."""
    mode = FakeTensorMode(allow_non_fake_inputs=True) if is_fake else nullcontext()
    with mode:
        dtype = DTYPES[config.engine.precision]
        device = torch.device("cpu")
        model = build_model_on(config.model, config.sizes, device=device, dtype=dtype)
        for parameter in model.parameters():
            if not is_fake:
                nn.init.normal_(parameter, std=0.02)
        freeze_parameters(model, config.train.freeze)
        scoring = build_scoring(model, config).train()
        arrays = build_arrays(config, micro_windows)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        with LiveBytes() as bytes_:
            bytes_.overlook([*model.parameters(), *arrays.values()])
            scores = scoring(**arrays)
            loss = scores.terms().sum()
            figures = bytes_.live
            kept, forward = figures, bytes_.most
            del scores
            bytes_.most = bytes_.live
            loss.backward()
            return Traced(kept, forward, bytes_.most)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def build_arrays(config: RunConfig, micro_windows: int) -> dict[str, Tensor]:
    """A micro-batch as the objective prepares it, of the planned number of targets."""
    reading = read_objective(config)
    rows, length = micro_windows, reading.length
    starts = torch.arange(0, rows, dtype=torch.int64)
    full = torch.full((rows,), length, dtype=torch.int32)
    name = config.objective.name
    if name in ("masked", "masked_order"):
        count = reading.targets * rows
        arrays = {
            "ids": torch.ones(rows, length, dtype=torch.int32),
            "lengths": full,
            "positions": torch.arange(count, dtype=torch.int32),
            "labels": torch.ones(count, dtype=torch.int32),
        }
        if name == "masked":
            return arrays | {"starts": starts * length}
        types = torch.zeros(rows, length, dtype=torch.uint8)
        return arrays | {"types": types, "order": torch.zeros(rows, dtype=torch.int32)}
    if reading.read_length:
        return {
            "source": torch.ones(rows, reading.read_length, dtype=torch.int32),
            "source_lengths": torch.full((rows,), reading.read_length, dtype=torch.int32),
            "labels": torch.ones(rows, length, dtype=torch.int32),
        }
    # Not all texts are of one length, by which torch takes other cells.
    more = torch.tensor([length // 3] if reading.masks_documents else [], dtype=torch.int64)
    return {
        "tokens": torch.ones(rows, length + 1, dtype=torch.int32),
        "starts": torch.cat([starts * (length + 1), more]),
        "lengths": full + 1,
    }
