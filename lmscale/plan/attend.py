"""Attention as torch computes it: in one kernel, or by all the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmscale.plan.operators import pointwise
from lmscale.plan.tape import FLOAT, Array, Record, Tape

Backend = Literal["causal", "dense", "flex"]
MAX_FLASH_HEAD = 256  # head widths of CUDA's fused kernels


@dataclass(frozen=True, kw_only=True)
class Visible:
    """Which keys the queries of a layer see."""

    backend: Backend
    pairs: float
    """Mean number of keys that a query sees, of which a sparse kernel computes so many."""
    mask: Array | None = None
    """bool [B or 1, 1, T, S], of the dense backend, or a bias that is added."""
    is_bias: bool = False


def attend(
    tape: Tape, name: str, q: Array, k: Array, v: Array, seen: Visible, *, softcap: float = 0.0
) -> Array:
    """softmax(q kᵀ) v of q [B, T, H, V] and k, v [B, S, K, V] → [B, T, H, V]."""
    heads = q.shape[2]
    if k.shape[2] != heads and (seen.mask is not None or (softcap and seen.backend != "flex")):
        shape = (*k.shape[:2], heads, k.shape[3])
        k = pointwise(tape, f"{name}.repeat_keys", [k], shape)
        v = pointwise(tape, f"{name}.repeat_values", [v], shape)
    if softcap and seen.backend != "flex":
        return _by_scores(tape, name, q, k, v, seen, capped=True)
    if not _is_fused(tape, q, seen):
        return _by_scores(tape, name, q, k, v, seen, capped=False)
    return _fused(tape, name, q, k, v, seen)


def _is_fused(tape: Tape, q: Array, seen: Visible) -> bool:
    """Whether one of torch's kernels takes it (sdp_utils.cpp of torch 2.13)."""
    if tape.on_gpu:
        return q.shape[-1] <= MAX_FLASH_HEAD or seen.mask is not None
    learned = seen.mask is not None and seen.mask.needs_gradient
    return tape.dropout == 0 and not learned


def _flops(q: Array, k: Array, keys: float) -> float:
    """Of q kᵀ and of the shares times v."""
    batch, length, heads, width = q.shape
    return 4.0 * batch * heads * length * keys * width


def _fused(tape: Tape, name: str, q: Array, k: Array, v: Array, seen: Visible) -> Array:
    """q, k, v, the result and a number a query are kept; of a mask a copy in q's dtype."""
    batch, length, heads, _ = q.shape
    keys = seen.pairs if seen.backend != "dense" else float(k.shape[1])
    kept = [tape.reserve(batch * length * heads * FLOAT)]
    mask_bytes = 0
    if seen.mask is not None and seen.is_bias:
        kept.append(seen.mask.memory)
    elif seen.mask is not None:
        mask_bytes = seen.mask.elements * q.itemsize
        kept.append(tape.reserve(mask_bytes))
    needs = any(a.needs_gradient for a in (q, k, v))
    output = tape.new(q.shape, needs_gradient=needs)
    flops = _flops(q, k, keys)
    saved = (q.memory, k.memory, v.memory, output.memory, *kept)
    tape.add(
        Record(
            name=name,
            kind="attention",
            inputs=(q, k, v) if seen.mask is None else (q, k, v, seen.mask),
            outputs=(output,),
            saved=saved if needs else (),
            product=(length, k.shape[1], q.shape[3]),
            flops=flops,
            backward_flops=2.5 * flops,  # five products for two: the scores are computed again
            extra_bytes=mask_bytes,
            backward_extra_bytes=mask_bytes,
            launches=1 if seen.mask is None else 2,
            backward_launches=2,
        )
    )
    return output


def _by_scores(
    tape: Tape, name: str, q: Array, k: Array, v: Array, seen: Visible, *, capped: bool
) -> Array:
    """With all the scores [B, H, T, S]: torch's own composition, or that of ``attention_softcap``.

    torch's copies queries, keys and values and computes in fp32; ours in their dtype.
    """
    batch, length, heads, width = q.shape
    scores = batch * heads * length * k.shape[1]
    wide = q.itemsize if capped or tape.on_gpu else FLOAT
    copies = (q.elements + k.elements + v.elements) * wide
    kept = copies + scores * wide  # the softmax
    if capped:  # k, q for the product, tanh's result, the softmax in fp32, and v's factor
        kept = copies + scores * (2 * q.itemsize + FLOAT) + batch * length * k.shape[1]
    if tape.dropout:  # the mask, and what is left
        kept += scores * (1 if tape.on_gpu else wide) + scores * wide
    output = tape.new(q.shape, needs_gradient=any(a.needs_gradient for a in (q, k, v)))
    flops = _flops(q, k, float(k.shape[1]))
    tape.add(
        Record(
            name=name,
            kind="attention",
            inputs=(q, k, v) if seen.mask is None else (q, k, v, seen.mask),
            outputs=(output,),
            saved=(tape.reserve(kept),),
            product=(length, k.shape[1], width),
            flops=flops,
            backward_flops=2 * flops,
            extra_bytes=kept + 4 * scores * wide,
            backward_extra_bytes=kept + 4 * scores * wide,
            scratch_bytes=2 * scores * wide,
            backward_scratch_bytes=2 * scores * wide,
            launches=8,
            backward_launches=12,
        )
    )
    return output
