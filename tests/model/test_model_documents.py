"""Documents packed in one window do not see each other, whichever backend computes attention."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from lmscale.model.attention import attend, compiled_flex_attention
from lmscale.model.layout import attention_backend, build_layout, mark_starts

GPT2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}


def begins_at(*rows: list[int], length: int) -> torch.Tensor:
    starts = [row * length + start for row, row_starts in enumerate(rows) for start in row_starts]
    return mark_starts(torch.tensor(starts, dtype=torch.int32), batch=len(rows), length=length)


LOCAL = {"sliding_windows": (3, 0), "attention_softcap": 2.0, "kv_heads": 2}


@pytest.mark.parametrize("switches", [{}, {"kv_heads": 2, "qk_norm": True}, GPT2, LOCAL])
@pytest.mark.parametrize("backend", ["dense", "flex"])
def test_packed_documents_have_the_hidden_states_they_have_alone(make_model, switches, backend):
    model = make_model(**switches)
    ids_BT = torch.randint(0, 61, (2, 16))
    rows = [0, 5, 6, 13], [0, 8]
    begins_BT = begins_at(*rows, length=16)
    layout = build_layout(begins_BT, backend, set(model.config.layer_windows))
    with torch.no_grad():
        packed_BTD = model(ids_BT, layout)
        for row, starts in enumerate(rows):
            for start, end in zip(starts, [*starts[1:], 16], strict=True):
                begins = torch.zeros(1, end - start, dtype=torch.bool)
                own = model.lay_out(begins, mask_documents=False)
                alone_BTD = model(ids_BT[row : row + 1, start:end], own)
                torch.testing.assert_close(packed_BTD[row, start:end], alone_BTD[0])


def test_without_document_masks_later_documents_see_earlier_ones(make_model):
    model = make_model()
    ids_BT = torch.randint(0, 61, (1, 16))
    begins_BT = begins_at([0, 8], length=16)
    open_layout = build_layout(begins_BT, "causal")
    with torch.no_grad():
        before_BTD = model(ids_BT, open_layout)
        ids_BT[0, 0] = (ids_BT[0, 0] + 1) % 61
        after_BTD = model(ids_BT, open_layout)
    assert open_layout.positions.tolist() == [list(range(16))]
    assert (before_BTD[0, 8:] - after_BTD[0, 8:]).abs().max() > 1e-3


def test_the_causal_backend_equals_an_explicit_triangle():
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind(0)
    triangle = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(attend(q, k, v, None), attend(q, k, v, triangle))


@pytest.mark.parametrize("length", [16, 128, 300, 512])
@pytest.mark.parametrize("sees_ahead", [False, True])
@pytest.mark.parametrize(("seed", "window"), [*((s, 0) for s in range(4)), (0, 130), (2, 100)])
def test_the_sparse_block_mask_is_the_one_made_from_every_pair(length, seed, window, sees_ahead):
    generator = torch.Generator().manual_seed(seed)
    begins_BT = torch.rand(3, length, generator=generator) < [0, 0.004, 0.02, 0.5][seed]
    begins_BT[:, 0] = True
    sparse = build_layout(begins_BT, "flex", [window], sees_ahead=sees_ahead).masks[window]
    dense_B1TT = build_layout(begins_BT, "dense", [window], sees_ahead=sees_ahead).masks[window]
    assert isinstance(sparse, BlockMask)
    # A number in the mask's code would have FlexAttention compiled for each window anew.
    assert all(isinstance(c.cell_contents, torch.Tensor) for c in sparse.mask_mod.__closure__)
    documents_BT = begins_BT.cumsum(1)

    def may_look(b, h, q, kv):
        is_near = (q - kv).abs() < (window or length)
        is_seen = is_near if sees_ahead else is_near & (q >= kv)
        return is_seen & (documents_BT[b, q] == documents_BT[b, kv])

    slow = create_block_mask(may_look, 3, 1, length, length, device="cpu")
    assert sparse.shape == slow.shape
    # Every pair of blocks is the same in both lists, or the kernels would skip or not mask some.
    assert torch.equal(sparse.to_dense(), slow.to_dense())
    for counts, indices in (
        ("kv_num_blocks", "kv_indices"),
        ("full_kv_num_blocks", "full_kv_indices"),
    ):
        assert torch.equal(getattr(sparse, counts), getattr(slow, counts))
        for b, q in [(b, q) for b in range(3) for q in range(getattr(sparse, counts).shape[-1])]:
            count = getattr(sparse, counts)[b, 0, q]
            ours, theirs = getattr(sparse, indices)[b, 0, q], getattr(slow, indices)[b, 0, q]
            assert sorted(ours[:count].tolist()) == sorted(theirs[:count].tolist())
    if length <= 300:
        q, k, v = torch.randn(3, 3, 2, length, 16, generator=generator).unbind(0)
        for cap in (0.0, 2.0):
            expected = attend(q, k, v, dense_B1TT, softcap=cap)
            torch.testing.assert_close(attend(q, k, v, sparse, softcap=cap), expected)


def test_positions_restart_at_every_document():
    begins_BT = begins_at([0, 3, 4], [0], length=6)
    layout = build_layout(begins_BT, "dense")
    assert layout.positions.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("expected", "case"),
    [
        ("causal", dict(device_type="cuda", masked=False)),
        ("causal", dict(device_type="cpu", masked=False)),
        ("dense", dict(device_type="cpu", masked=True)),
        ("flex", dict(device_type="cuda", masked=True)),
        ("varlen", dict(device_type="cuda", masked=True, can_pack=True)),
        ("causal", dict(device_type="cuda", masked=False, can_pack=True)),
        ("dense", dict(device_type="cuda", masked=True, can_pack=True, dropout=0.1)),
        ("flex", dict(device_type="cuda", masked=True, can_pack=True, choice="flex")),
        ("dense", dict(device_type="cuda", masked=True, can_pack=True, choice="sdpa")),
        ("dense", dict(device_type="cuda", masked=True, dropout=0.1)),
        ("dense", dict(device_type="cuda", masked=True, head_width=8)),
        ("dense", dict(device_type="cuda", masked=True, choice="sdpa")),
        ("causal", dict(device_type="cuda", masked=False, choice="sdpa")),
    ],
)
def test_the_backend_follows_from_device_mask_and_dropout(expected, case):
    assert attention_backend(**case) == expected


def test_flex_attention_is_compiled_for_more_shapes_than_torch_would_or_fails():
    def compiles_for(batch):
        mask = build_layout(begins_at(*[[0]] * batch, length=8), "flex", {0}).masks[0]
        x_BHTV = torch.ones(batch, 1, 8, 2)
        torch.testing.assert_close(flex(x_BHTV, x_BHTV, x_BHTV, block_mask=mask), x_BHTV)

    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        flex = compiled_flex_attention("eager")
        compiles_for(1)
        compiles_for(2)
        torch._dynamo.config.recompile_limit = 2
        with pytest.raises(FailOnRecompileLimitHit):
            compiles_for(3)
