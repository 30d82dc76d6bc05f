"""The arrays of a micro-batch on their way to the device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def to_device(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The arrays as tensors on the device, in the loader's compact types."""
    tensors = {}
    for name, array in arrays.items():
        # torch wants writable memory, though nobody writes, and no negative strides. Not
        # ascontiguousarray, which makes a vector of a single number.
        tensor = torch.from_numpy(np.require(array, requirements=("C", "W")))
        if device.type == "cuda":
            tensor = tensor.pin_memory().to(device, non_blocking=True)
        tensors[name] = tensor
    return tensors
