# Shape letters: B batch, T time, H heads, V head width, R half of it.
"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in Llama's layout of halves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmscale.config.model import RopeScalingConfig


def plan_rotation(
    positions_BT: Tensor,
    *,
    head_width: int,
    theta: float,
    scaling: RopeScalingConfig | None = None,
) -> Tensor:
    """Cosines and sines, f32 [2, B, T, 1, R], of the angles position · frequency.

    Made from the positions in every pass: no buffer to keep, move between dtypes or save.
    """
    scaling = scaling or RopeScalingConfig()
    frequency_R = plan_frequencies(head_width, theta, scaling).to(positions_BT.device)
    angle_BTR = positions_BT[..., None].float() * frequency_R
    # YaRN, section 3.4: 0.1 ln s + 1 on queries and keys, which sharpens the softmax.
    is_sharper = scaling.kind == "yarn"
    length = 0.1 * math.log(scaling.factor) + 1 if is_sharper else 1.0
    return torch.stack([angle_BTR.cos(), angle_BTR.sin()])[:, :, :, None] * length


def plan_frequencies(head_width: int, theta: float, scaling: RopeScalingConfig) -> Tensor:
    """Radians per position of each pair, f32 [R] on the CPU: θ^(-2r/V), slowed by the scaling.

    All but ``ntk``, which raises θ, keep a share of each frequency and divide the rest by the
    factor: ``linear`` nothing of any (Chen et al. 2023), ``yarn`` (Peng et al. 2023, section 3.2)
    and ``llama3`` (the code of Llama 3.1) what turns often within the original positions.
    """
    pairs_R = torch.arange(0, head_width, 2, dtype=torch.float32, device="cpu")
    if scaling.kind == "ntk":
        theta *= scaling.factor ** (head_width / max(head_width - 2, 1))
    frequency_R = theta ** (-pairs_R / head_width)
    if scaling.kind in ("none", "ntk"):
        return frequency_R
    kept_R = torch.zeros_like(frequency_R)
    original = scaling.original_positions
    if scaling.kind == "llama3":
        turns_R = original * frequency_R / (2 * math.pi)
        low, high = scaling.low_turns, scaling.high_turns
        kept_R = ((turns_R - low) / (high - low)).clamp(0, 1)
    elif scaling.kind == "yarn":

        def pair_that_turns(times: float) -> float:
            per_turn = original / (times * 2 * math.pi)
            return head_width * math.log(per_turn) / (2 * math.log(theta))

        # Whole pairs, within bounds, as in the paper's code.
        first = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
        last = min(math.ceil(pair_that_turns(scaling.beta_slow)), head_width - 1)
        number_R = torch.arange(head_width // 2, dtype=torch.float32, device="cpu")
        kept_R = 1 - ((number_R - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequency_R * (kept_R + (1 - kept_R) / scaling.factor)


def rotate(x_BTHV: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (r, r + V/2) by its angle, in fp32; the dtype stays."""
    cos_BT1R, sin_BT1R = rotation.unbind(0)
    a_BTHR, b_BTHR = x_BTHV.float().chunk(2, dim=-1)
    turned = torch.cat(
        [a_BTHR * cos_BT1R - b_BTHR * sin_BT1R, b_BTHR * cos_BT1R + a_BTHR * sin_BT1R], dim=-1
    )
    return turned.to(x_BTHV.dtype)
