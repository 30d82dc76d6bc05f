"""What a preparation hands over reaches the device, however it lies in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmscale.objective.scores import to_device

GRID = np.arange(6, dtype=np.int32).reshape(2, 3)


@pytest.mark.parametrize(
    "array",
    [
        GRID,
        GRID[::-1],
        GRID[:, ::-1],
        GRID.T,
        GRID[:, ::2],
        np.broadcast_to(GRID[0], (2, 3)),
        np.array(5, dtype=np.int32),
    ],
)
def test_arrays_of_any_strides_reach_the_device(array):
    tensor = to_device({"ids": array}, torch.device("cpu"))["ids"]
    assert tensor.shape == array.shape and tensor.is_contiguous()
    assert tensor.tolist() == array.tolist()
