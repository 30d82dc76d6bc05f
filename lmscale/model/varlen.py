# Shape letters: B batch, T time, N = B·T tokens, S slots for documents, H query heads, K key/value
# heads, V head width.
"""Packed documents as one long sequence with its cuts, as flash attention's kernels take them (Dao
2023, arXiv 2307.08691), through ``torch.nn.attention.varlen``.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SLOTS = 64  # then powers of two: few shapes for compiled blocks and CUDA graphs
DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_WIDTH = 256
FLASH_CAPABILITY = (8, 0)  # Ampere, of torch's flash kernels
# Where the backward pass of heads of 200 to 224 has too little shared memory; SDPA takes other
# kernels there (torch 2.13, sdp_utils.cpp: "head_dim_gt192_constraints_on_sm86_89_or_120").
SMALL_CAPABILITIES = ((8, 6), (8, 7), (8, 9), (12, 0), (12, 1))
SMALL_MISSES = range(193, 225)
_MODULE = "torch.nn.attention.varlen"


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Where the documents of a micro-batch are cut, and how far a token sees in its own."""

    cuts: Tensor
    """int32 [S + 1]: the flat start of every document in [B · T], then B · T in what is left: empty
    documents, of which the kernels make nothing.
    """
    longest: int
    """No document is longer: T, which the host knows without asking the device."""
    reach: tuple[int, int]
    """Tokens that are seen before and behind a token's own; -1: all."""


def plan_slots(most_documents: int) -> int:
    """Slots for up to so many documents."""
    return max(MIN_SLOTS, 1 << (most_documents - 1).bit_length())


def plan_reach(sliding_window: int, *, sees_ahead: bool) -> tuple[int, int]:
    """Of a sliding window, 0 being none: a token is one of those that it sees."""
    back = sliding_window - 1 if sliding_window else -1
    return back, (back if sees_ahead else 0)


def find_cuts(begins_BT: Tensor, most_documents: int) -> Tensor:
    """``Packed.cuts`` of bool [B, T], True where a document begins, as every row does. There are at
    most ``most_documents``: how many, the device alone knows, and is not asked.
    """
    numbers_N = begins_BT.flatten().cumsum(0)  # int64, of each token's document, from 1
    slots = torch.arange(1, plan_slots(most_documents) + 2, device=begins_BT.device)
    # The first token whose document has that number; N where there is none.
    return torch.searchsorted(numbers_N, slots, out_int32=True)


def pack(
    begins_BT: Tensor, most_documents: int, sliding_windows: Iterable[int], *, sees_ahead: bool
) -> Mapping[int, Packed]:
    """What the layers of each sliding window take: window → ``Packed``."""
    is_first_T = torch.arange(begins_BT.shape[1], device=begins_BT.device) == 0
    cuts = find_cuts(begins_BT | is_first_T, most_documents)
    return {
        window: Packed(
            cuts=cuts,
            longest=begins_BT.shape[1],
            reach=plan_reach(window, sees_ahead=sees_ahead),
        )
        for window in sliding_windows
    }


def attend_packed(q_BHTV: Tensor, k_BKTV: Tensor, v_BKTV: Tensor, packed: Packed) -> Tensor:
    """softmax(q kᵀ / √V) v within each document, [B, H, T, V]."""
    from torch.nn.attention.varlen import varlen_attn

    batch, heads = q_BHTV.shape[:2]
    q_NHV, k_NKV, v_NKV = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTV, k_BKTV, v_BKTV))
    y_NHV = varlen_attn(
        q_NHV,
        k_NKV,
        v_NKV,
        packed.cuts,
        packed.cuts,
        packed.longest,
        packed.longest,
        window_size=packed.reach,
        enable_gqa=heads != k_BKTV.shape[1],
    )
    assert isinstance(y_NHV, Tensor)
    return y_NHV.unflatten(0, (batch, -1)).transpose(1, 2)


def can_pack(*, device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether flash attention's kernels for cut sequences do such heads on this device."""
    fits = dtype in DTYPES and head_width % 8 == 0 and head_width <= MAX_HEAD_WIDTH
    if not fits or device.type != "cuda" or not _has_kernels(device.index):
        return False
    is_small = torch.cuda.get_device_capability(device.index) in SMALL_CAPABILITIES
    return has_interface() and not (is_small and head_width in SMALL_MISSES)


@functools.cache
def has_interface() -> bool:
    """Whether this torch has ``varlen_attn`` with windows and grouped heads."""
    if importlib.util.find_spec(_MODULE) is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


@functools.cache
def _has_kernels(index: int | None) -> bool:
    return (
        torch.backends.cuda.is_flash_attention_available()
        and torch.version.hip is None
        and torch.cuda.get_device_capability(index) >= FLASH_CAPABILITY
    )
