"""The step of every family, traced on a device that is not there: what would stray, and what would
wait for it. Prints a line of JSON for each case: its problems, and which ways of attention it took.

    python tests/model/elsewhere.py DATA FOLDER CASE …

torch's Python backend stands for the device, and fake tensors for its memory: nothing is computed,
but an operation on tensors of two devices is an error as on a GPU. Indices on the CPU are not, in
torch, and neither is a wait for the device: a mode that sees every operation finds these.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).parents[1]))

import torch  # noqa: E402
from family_steps import build_scored, configure, micro_batches  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.backend_registration import (  # noqa: E402
    _setup_privateuseone_for_python_backend,
)

from lmscale.model import decoder, encoder, family, layout, varlen  # noqa: E402

DEVICE = "elsewhere"
MAY_CROSS = ("aten._to_copy", "aten.copy_")
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal")


class Watch(TorchDispatchMode):
    """What operations do with tensors of two devices, and what makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: dict[str, None] = {}
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removesuffix(".default")
        name = ".".join(name.split(".")[:2])
        self.names.add(name)
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        kinds = {x.device.type for x in tensors if x.dim() or x.device.type != "cpu"}
        if len(kinds) > 1 and name not in MAY_CROSS:
            self.problems[f"{name} takes tensors of {sorted(kinds)}"] = None
        own = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        leaves = DEVICE in kinds and any(x.device.type == "cpu" for x in own)
        if leaves or (name in WAITS and DEVICE in kinds):
            self.problems[f"{name} waits for the device"] = None
        return result


def trace(case: str, data: Path, folder: Path) -> dict[str, Any]:
    """Forward and backward of one micro-batch in bf16."""
    # Nothing is recomputed, which torch 2.13's engine would do in a thread without these modes.
    config = configure(case, data, folder, **{"model.activation_checkpoint_every": 0})
    (micro,) = micro_batches(config, 1)
    real = {name: torch.from_numpy(array) for name, array in micro.arrays.items()}
    watch = Watch()
    with FakeTensorMode():
        scoring = build_scored(config, DEVICE, torch.bfloat16)
        arrays = {
            name: torch.empty(each.shape, dtype=each.dtype, device=DEVICE)
            for name, each in real.items()
        }
        with watch:
            scores = scoring(**arrays)
            scores.terms().sum().backward()
    lost = [
        name
        for name, parameter in scoring.named_parameters()
        if parameter.grad is not None and parameter.grad.device.type != DEVICE
    ]
    return {
        "problems": [*watch.problems, *(f"the gradient of {name} is elsewhere" for name in lost)],
        "has_gradients": any(p.grad is not None for p in scoring.parameters()),
        "packs": "torch_attn._varlen_attn" in watch.names,
    }


def main(data: Path, folder: Path, cases: list[str]) -> None:
    _setup_privateuseone_for_python_backend(DEVICE)
    choose = layout.attention_backend

    def as_on_cuda(**how: Any) -> Any:
        is_there = how["device_type"] == DEVICE
        return choose(**{**how, "device_type": "cuda" if is_there else how["device_type"]})

    with (
        mock.patch.object(decoder, "attention_backend", as_on_cuda),
        mock.patch.object(encoder, "attention_backend", as_on_cuda),
        mock.patch.object(family, "can_pack", lambda **how: how["dtype"] in varlen.DTYPES),
    ):
        for case in cases:
            try:
                found = trace(case, data, folder)
            except Exception as error:
                traceback.print_exc()
                found = {"problems": [f"{type(error).__name__}: {error}"]}
            print(json.dumps({"case": case, **found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
