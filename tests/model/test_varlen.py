"""Packed documents as flash attention's kernels take them: the arguments, by a plain reference.

The kernels run on CUDA alone (benchmarks/gpu_kernels.py compares them there). What is passed to
them is held against the dense mask by a reference that does what torch documents of the function.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import varlen as theirs

from lmscale.model.attention import attend
from lmscale.model.layout import build_layout
from lmscale.model.varlen import (
    can_pack,
    find_cuts,
    has_interface,
    plan_reach,
    plan_slots,
)


def plain_varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size, enable_gqa):
    """``varlen_attn`` document by document: queries [N, H, V], keys and values [N, K, V]."""
    assert cu_q is cu_k and cu_q.dtype == torch.int32 and max_q == max_k
    assert enable_gqa == (q.shape[1] != k.shape[1])
    outputs = []
    for first, last in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
        assert last - first <= max_q
        distance = torch.arange(last - first)[:, None] - torch.arange(last - first)
        left, right = window_size
        seen = torch.ones_like(distance, dtype=torch.bool)
        seen &= (distance <= left) if left >= 0 else seen
        seen &= (-distance <= right) if right >= 0 else seen
        q1, k1, v1 = (x[first:last].transpose(0, 1)[None] for x in (q, k, v))
        y = F.scaled_dot_product_attention(q1, k1, v1, attn_mask=seen, enable_gqa=True)
        outputs.append(y[0].transpose(0, 1))
    return torch.cat(outputs)


@st.composite
def rows(draw):
    """bool [B, T], True where a document begins; column 0 need not be marked."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    places = st.lists(st.booleans(), min_size=batch * length, max_size=batch * length)
    return torch.tensor(draw(places)).view(batch, length)


@settings(deadline=None)
@given(rows(), st.sampled_from([0, 1, 3]), st.booleans(), st.sampled_from([1, 2, 4]))
def test_packed_documents_are_what_a_mask_of_all_pairs_gives(begins, window, ahead, kv_heads):
    begins_BT = begins | (torch.arange(begins.shape[1]) == 0)
    generator = torch.Generator().manual_seed(int(begins.sum()))
    shape = (len(begins), begins.shape[1], 8)
    q, k, v = (
        torch.randn(shape[0], heads, *shape[1:], generator=generator)
        for heads in (4, kv_heads, kv_heads)
    )
    dense = build_layout(begins_BT, "dense", [window], sees_ahead=ahead)
    packed = build_layout(
        begins_BT, "varlen", [window], sees_ahead=ahead, most_documents=int(begins_BT.sum())
    )
    assert torch.equal(packed.positions, dense.positions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "varlen_attn", plain_varlen)
        ours = attend(q, k, v, packed.masks[window])
    torch.testing.assert_close(ours, attend(q, k, v, dense.masks[window]))


@given(rows(), st.integers(0, 100))
def test_the_cuts_are_the_starts_of_documents_and_empty_ones_fill_the_slots(begins, more):
    begins_BT = begins | (torch.arange(begins.shape[1]) == 0)
    starts = begins_BT.flatten().nonzero()[:, 0].tolist()
    cuts = find_cuts(begins_BT, len(starts) + more)
    total = begins_BT.numel()
    assert len(cuts) == plan_slots(len(starts) + more) + 1
    assert cuts.tolist() == starts + [total] * (len(cuts) - len(starts))


def test_numbers_of_documents_have_few_shapes():
    assert {plan_slots(count) for count in range(1, 4097)} == {64, 128, 256, 512, 1024, 2048, 4096}
    assert all(plan_slots(count) >= count for count in range(1, 4097))


def test_a_window_counts_a_tokens_own_place_and_a_causal_one_is_what_torch_calls_causal():
    assert plan_reach(0, sees_ahead=False) == (-1, 0)
    assert plan_reach(0, sees_ahead=True) == (-1, -1)
    assert plan_reach(4, sees_ahead=False) == (3, 0)
    assert plan_reach(4, sees_ahead=True) == (3, 3)


def test_only_a_gpu_in_16_bits_packs():
    assert has_interface()  # of the torch that is pinned
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert not can_pack(device=cpu, dtype=torch.bfloat16, head_width=64)
    assert not can_pack(device=cuda, dtype=torch.float32, head_width=64)
    assert not can_pack(device=cuda, dtype=torch.bfloat16, head_width=12)
    assert not can_pack(device=cuda, dtype=torch.bfloat16, head_width=512)
