# Shape letters: B batch, T time, H heads, V head width, R half of it.
"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in Llama's layout of halves."""

from __future__ import annotations

import torch
from torch import Tensor


def plan_rotation(positions_BT: Tensor, *, head_width: int, theta: float) -> Tensor:
    """Cosines and sines, f32 [2, B, T, 1, R], of the angles position · theta^(-2r/V).

    Made from the positions in every pass: no buffer to keep, move between dtypes or save.
    """
    pairs_R = torch.arange(0, head_width, 2, device=positions_BT.device, dtype=torch.float32)
    frequency_R = theta ** (-pairs_R / head_width)
    angle_BTR = positions_BT[..., None].float() * frequency_R
    return torch.stack([angle_BTR.cos(), angle_BTR.sin()])[:, :, :, None]


def rotate(x_BTHV: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (r, r + V/2) by its angle, in fp32; the dtype stays."""
    cos_BT1R, sin_BT1R = rotation.unbind(0)
    a_BTHR, b_BTHR = x_BTHV.float().chunk(2, dim=-1)
    turned = torch.cat(
        [a_BTHR * cos_BT1R - b_BTHR * sin_BT1R, b_BTHR * cos_BT1R + a_BTHR * sin_BT1R], dim=-1
    )
    return turned.to(x_BTHV.dtype)
