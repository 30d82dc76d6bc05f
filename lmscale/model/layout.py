# Shape letters: B batch, T time (queries), S time (keys), Q and K blocks of queries and keys.
"""What a micro-batch needs beside its ids: positions, and which token may look at which.

Four backends stand behind one value. ``causal`` has no mask: SDPA's own triangle. ``dense`` is a
boolean block-diagonal mask in SDPA, for the CPU and for what FlexAttention cannot do. ``flex`` is a
block-sparse mask for FlexAttention (Dong et al. 2024, arXiv 2412.05496): it never exists as [T, T].
``varlen`` has no mask, but the cuts between documents, for flash attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lmscale.config.model_base import FLEX_MIN_HEAD_WIDTH
from lmscale.model.varlen import Packed, pack

Backend = Literal["causal", "dense", "flex", "varlen"]
Choice = Literal["auto", "flex", "sdpa"]
Mask = Tensor | BlockMask | Packed | None  # None: causal
FLEX_BLOCK = 128  # rows and columns of one block of the sparse mask: FlexAttention's own default


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Positions and masks of a micro-batch, made once and read by every block."""

    positions: Tensor
    """int64 [B, T]; they restart at every document when documents are masked."""
    masks: Mapping[int, Mask]
    """Of each sliding window that a layer has, 0 being none. None: causal. Tensor: bool [B or 1, 1,
    T, S], True: may look. BlockMask: flex. Packed: varlen.
    """

    @property
    def mask(self) -> Mask:
        """That of the layers without a sliding window."""
        return self.masks[0]


def attention_backend(
    *,
    device_type: str,
    masked: bool,
    dropout: float = 0.0,
    head_width: int = 64,
    can_pack: bool = False,
    choice: Choice = "auto",
) -> Backend:
    """Choose how attention is computed; ``masked`` says that a token may not see all before it,
    ``can_pack`` that flash attention's kernels for cut sequences do what is asked for.

    FlexAttention is for CUDA only (on the CPU it has no backward), drops nothing, and wants heads
    of at least 16; elsewhere the mask is dense.
    """
    if not masked:
        return "causal"
    if can_pack and dropout == 0 and choice == "auto":
        return "varlen"
    can_flex = device_type == "cuda" and dropout == 0 and head_width >= FLEX_MIN_HEAD_WIDTH
    return "flex" if choice != "sdpa" and can_flex else "dense"


def mark_starts(starts: Tensor, *, batch: int, length: int) -> Tensor:
    """Flat positions where documents begin → bool [batch, length], True at them and in column 0."""
    begins = torch.zeros(batch * length, dtype=torch.bool, device=starts.device)
    begins[starts.long()] = True
    begins_BT = begins.view(batch, length)
    begins_BT[:, 0] = True
    return begins_BT


def build_layout(
    begins_BT: Tensor,
    backend: Backend,
    sliding_windows: Iterable[int] = (0,),
    *,
    sees_ahead: bool = False,
    most_documents: int | None = None,
) -> Layout:
    """The layout of whole rows. ``begins_BT`` is bool, True where a document begins; there are no
    more than ``most_documents``, which ``varlen`` has to know.

    Positions restart at each document, but for ``causal``, where documents see each other. There is
    a mask for each of ``sliding_windows``; for ``causal`` only 0, that of none. ``sees_ahead``: a
    token sees what follows it as well, within its document and as far ahead as back.
    """
    batch, length = begins_BT.shape
    columns_T = torch.arange(length, device=begins_BT.device)
    if backend == "causal":
        return Layout(positions=columns_T.expand(batch, length), masks={0: None})
    start_BT = torch.where(begins_BT, columns_T, 0).cummax(1).values
    if backend == "varlen":
        assert most_documents is not None, "without it the device would have to be asked"
        packed = pack(begins_BT, most_documents, sliding_windows, sees_ahead=sees_ahead)
        return Layout(positions=columns_T - start_BT, masks=packed)
    documents_BT = begins_BT.cumsum(1, dtype=torch.int32)
    build = _block_mask if backend == "flex" else _dense_mask
    masks = {window: build(documents_BT, window, sees_ahead) for window in sliding_windows}
    return Layout(positions=columns_T - start_BT, masks=masks)


def show_prefixes(layout: Layout, begins_BT: Tensor, is_prefix_BT: Tensor) -> Layout:
    """A dense layout in which a document's tokens see all of those that ``is_prefix_BT`` names,
    whatever follows what.
    """
    documents_BT = begins_BT.cumsum(1, dtype=torch.int32)
    same_BTS = documents_BT[:, :, None] == documents_BT[:, None, :]
    shown_B1TS = (same_BTS & is_prefix_BT[:, None, :])[:, None]
    masks: dict[int, Mask] = {}
    for window, mask in layout.masks.items():
        assert isinstance(mask, Tensor), "the layout is dense"
        masks[window] = mask | shown_B1TS
    return Layout(positions=layout.positions, masks=masks)


def build_step_layout(
    *,
    batch: int,
    offset: int,
    length: int,
    device: torch.device,
    sliding_windows: Iterable[int] = (0,),
    num_prefix: int = 0,
) -> Layout:
    """The layout of ``length`` new tokens after ``offset`` cached ones; a row is one document.

    ``num_prefix``: so many tokens, all of a row's first step, are seen by each one of it.
    """
    positions_T = torch.arange(offset, offset + length, device=device)
    columns_S = torch.arange(offset + length, device=device)
    distance_TS = positions_T[:, None] - columns_S

    def build(window: int) -> Tensor | None:
        reaches_back = window == 0 or window >= offset + length
        if reaches_back and (length == 1 or (offset == 0 and not num_prefix)):
            return None  # a first pass is causal, a single token sees everything before it
        seen_TS = (distance_TS >= 0) & (reaches_back | (distance_TS < window))
        return (seen_TS | (columns_S < num_prefix))[None, None]

    masks = {window: build(window) for window in sliding_windows}
    return Layout(positions=positions_T.expand(batch, length), masks=masks)


def _dense_mask(documents_BT: Tensor, sliding_window: int, sees_ahead: bool) -> Tensor:
    seen_BTS = documents_BT[:, :, None] == documents_BT[:, None, :]
    if sliding_window:
        seen_BTS = seen_BTS.triu(1 - sliding_window)
    ahead = sliding_window - 1 if sliding_window else seen_BTS.shape[-1]
    return seen_BTS.tril(ahead if sees_ahead else 0)[:, None]


def _block_mask(documents_BT: Tensor, sliding_window: int, sees_ahead: bool) -> BlockMask:
    """The document mask by blocks, from the first and last document number of each block.

    Document numbers never fall along a row, so a block of queries looks at a block of keys if
    neither ends in a document older than the other begins with, and sees it whole if both lie in
    one document. The pair that is nearest, and the one that is farthest, stand at the blocks' ends,
    which tells the same of a sliding window. Exact, and (T/128)² numbers instead of
    ``create_block_mask``'s T².
    """
    reach = sliding_window or documents_BT.shape[1]  # every distance is less
    # Of the mask's own code: FlexAttention would be compiled anew for every other number.
    back, ahead = (
        torch.full((), distance, device=documents_BT.device)
        for distance in (reach, reach if sees_ahead else 1)
    )
    batch, length = documents_BT.shape
    num_blocks = -(-length // FLEX_BLOCK)
    edges_Q = torch.arange(num_blocks, device=documents_BT.device) * FLEX_BLOCK
    first_BQ = documents_BT[:, edges_Q]
    last_BQ = documents_BT[:, (edges_Q + FLEX_BLOCK - 1).clamp(max=length - 1)]
    is_whole_Q = edges_Q + FLEX_BLOCK <= length
    apart_QK = edges_Q[:, None] - edges_Q[None, :]
    is_seen_QK = torch.ones_like(apart_QK, dtype=torch.bool) if sees_ahead else apart_QK >= 0
    # A block that meets itself is seen whole only where a token sees what follows it.
    is_whole_QK = is_seen_QK if sees_ahead else apart_QK > 0
    oldest_BQK = torch.minimum(first_BQ[:, :, None], first_BQ[:, None, :])
    newest_BQK = torch.maximum(last_BQ[:, :, None], last_BQ[:, None, :])
    full_BQK = (
        (oldest_BQK == newest_BQK)
        & is_whole_QK
        & (apart_QK.abs() + FLEX_BLOCK - 1 < reach)
        & is_whole_Q[:, None]
        & is_whole_Q[None, :]
    )
    seen_BQK = (
        (last_BQ[:, None, :] >= first_BQ[:, :, None])
        & (last_BQ[:, :, None] >= first_BQ[:, None, :])
        & is_seen_QK
        & (apart_QK.abs() - FLEX_BLOCK + 1 < reach)
    )
    counts, indices = _in_order(seen_BQK & ~full_BQK)
    full_counts, full_indices = _in_order(full_BQK)

    def may_look(b: Tensor, h: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
        same_document = documents_BT[b, q_index] == documents_BT[b, kv_index]
        return same_document & (q_index - kv_index < back) & (kv_index - q_index < ahead)

    return BlockMask.from_kv_blocks(
        counts,
        indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=may_look,
        seq_lengths=(length, length),
    )


def _in_order(blocks_BQK: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, and their numbers with the chosen ones first."""
    counts_B1Q = blocks_BQK.sum(-1, dtype=torch.int32)[:, None]
    order_B1QK = blocks_BQK.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, None]
    return counts_B1Q.contiguous(), order_B1QK.to(torch.int32).contiguous()
