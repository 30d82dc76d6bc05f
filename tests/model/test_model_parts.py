"""The Transformer's parts against closed forms and each other."""

from __future__ import annotations

import math
import typing
from functools import partial

import pytest
import torch
from torch import nn

from lmscale.config.model import DecoderConfig, RopeScalingConfig, Sizes
from lmscale.config.model_base import GATED, Activation
from lmscale.errors import ConfigError
from lmscale.model.attention import attend
from lmscale.model.family import account_model, build_model
from lmscale.model.feed_forward import FeedForward
from lmscale.model.initialize import LayerNorm, RMSNorm
from lmscale.model.layout import build_layout
from lmscale.model.recompute import is_recomputed
from lmscale.model.rotary import plan_frequencies, plan_rotation, rotate
from lmscale.objective.cross_entropy import chunked_cross_entropy


def causal(ids_BT: torch.Tensor):
    begins_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    return build_layout(begins_BT, "causal")


@pytest.mark.parametrize("activation", typing.get_args(Activation))
def test_every_activation_is_the_textbook_s_function_and_a_gated_one_multiplies(activation):
    normal_cdf = torch.distributions.Normal(0, 1).cdf
    plain = {
        "relu": lambda x: x.clamp(min=0),
        "gelu": lambda x: x / 2 * (1 + ((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh()),
        "gelu_exact": lambda x: x * normal_cdf(x),
        "silu": lambda x: x / (1 + (-x).exp()),
        "sigmoid": lambda x: 1 / (1 + (-x).exp()),
        "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    }
    part = FeedForward(5, 7, activation, bias=True, std=1.0, residual_std=1.0)
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    x_BTD = torch.randn(2, 3, 5)
    if activation in GATED:
        gate_BTF, up_BTF = part.gate_up(x_BTD).split(7, dim=-1)
        inner_BTF = plain[GATED[activation]](gate_BTF) * up_BTF
    else:
        inner_BTF = plain[activation](part.up(x_BTD))
    torch.testing.assert_close(part(x_BTD), part.down(inner_BTF))


def test_rope_turns_each_pair_by_position_times_frequency():
    x_BTHV = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 3, 1, 4)
    rotation = plan_rotation(torch.tensor([[0, 1, 5]]), head_width=4, theta=100.0)
    turned = rotate(x_BTHV, rotation)[0, :, 0]
    for row, position in enumerate([0, 1, 5]):
        for pair, frequency in enumerate([1.0, 0.1]):  # 100^(-0/4), 100^(-2/4)
            a, b = [1.0, 2.0][pair], [3.0, 4.0][pair]
            c, s = math.cos(position * frequency), math.sin(position * frequency)
            assert turned[row, pair].item() == pytest.approx(a * c - b * s, abs=1e-6)
            assert turned[row, pair + 2].item() == pytest.approx(a * s + b * c, abs=1e-6)


def test_rope_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float32).unbind(0)

    def score(q_position: int, k_position: int) -> float:
        at = [
            plan_rotation(torch.tensor([[position]]), head_width=8, theta=10_000.0)
            for position in (q_position, k_position)
        ]
        return (rotate(q, at[0]) * rotate(k, at[1])).sum().item()

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)


def test_grouped_queries_equal_full_attention_with_repeated_heads(make_model):
    grouped = make_model(kv_heads=2)
    full = make_model(kv_heads=4)
    full.load_state_dict(
        {name: v for name, v in grouped.state_dict().items() if "qkv" not in name}, strict=False
    )
    for mine, theirs in zip(full.blocks, grouped.blocks, strict=True):
        q, k, v = theirs.attention.qkv.weight.split([32, 16, 16])
        k, v = (x.view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32) for x in (k, v))
        mine.attention.qkv.weight.data.copy_(torch.cat([q, k, v]))
    ids_BT = torch.randint(0, 61, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(full(ids_BT, causal(ids_BT)), grouped(ids_BT, causal(ids_BT)))


def test_grouped_attention_is_the_same_with_and_without_a_mask():
    q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    triangle = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(attend(q, k, v, None), attend(q, k, v, triangle))


LOCAL = {"sliding_windows": (4, 0), "attention_softcap": 1.5, "kv_heads": 2, "qkv_bias": True}


@pytest.mark.parametrize("switches", [{}, {"kv_heads": 1}, {"positions": "learned"}, LOCAL])
@pytest.mark.parametrize("pieces", [[12], [5] + [1] * 7, [1] * 12, [4, 3, 5]])
def test_decoding_with_a_cache_equals_the_full_forward(make_model, switches, pieces):
    model = make_model(**switches)
    ids_BT = torch.randint(0, 61, (2, 12))
    caches = model.build_state(batch=2, capacity=14)
    with torch.no_grad():
        outputs = [model.extend(piece_BT, caches) for piece_BT in ids_BT.split(pieces, dim=1)]
        layout = model.lay_out(torch.zeros_like(ids_BT, dtype=torch.bool), mask_documents=False)
        torch.testing.assert_close(torch.cat(outputs, 1), model(ids_BT, layout))


@pytest.mark.parametrize("windows", [(4, 0), (30, 1)])
@pytest.mark.parametrize("segments", [2, 3, 5])
def test_segments_have_the_hidden_states_of_one_pass_and_pass_no_gradient_back(
    make_model, windows, segments
):
    settings = {"sliding_windows": windows, "segments": segments, "activation_checkpoint_every": 2}
    model = make_model(vocab_size=24, **settings)
    ids_BT = torch.arange(24).view(2, 12)  # so that each token has its row of the embedding
    begins_BT = torch.zeros(2, 12, dtype=torch.bool)
    begins_BT[1, 7] = True  # a document that begins inside of a segment
    whole_BTD = model(ids_BT, model.lay_out(begins_BT, mask_documents=True))
    model.train()
    cut_BTD = model(ids_BT, model.lay_out(begins_BT, mask_documents=True))
    torch.testing.assert_close(cut_BTD, whole_BTD)
    cut_BTD[:, -1].square().sum().backward()
    last = -(-12 // segments) * ((12 - 1) // -(-12 // segments))  # first token of the last segment
    reached_BT = model.embedding.weight.grad.norm(dim=1)[ids_BT] > 0
    assert not reached_BT[:, :last].any()
    assert reached_BT[0, last:].all()


def test_ntk_keeps_the_fastest_frequency_and_slows_the_slowest_by_the_factor():
    plain = plan_frequencies(16, 1e4, RopeScalingConfig())
    scaled = plan_frequencies(16, 1e4, RopeScalingConfig(kind="ntk", factor=4.0))
    assert scaled[0] == plain[0]
    assert scaled[-1].item() == pytest.approx(plain[-1].item() / 4, rel=1e-5)


def test_capped_logits_are_scored_as_they_are_given(make_model):
    model = make_model(logit_softcap=2.0)
    hidden_ND, labels_N = 5 * torch.randn(6, 32), torch.randint(0, 61, (6,))
    logits_NV = model.head(hidden_ND)
    torch.testing.assert_close(logits_NV, 2 * (hidden_ND @ model.head.weight.T / 2).tanh())
    score = partial(chunked_cross_entropy, labels_N=labels_N, chunk_tokens=4)
    expected = nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")
    torch.testing.assert_close(model.head(hidden_ND, score).nll, expected)


def test_dense_attention_with_a_soft_cap_is_the_formula():
    q, k, v = torch.randn(3, 2, 4, 5, 8, dtype=torch.float64).unbind(0)
    scores = 3 * (q @ k.mT / 8**0.5 / 3).tanh()
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    torch.testing.assert_close(attend(q, k, v, None, softcap=3.0), scores.softmax(-1) @ v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [RMSNorm(48, 1e-5), LayerNorm(48, 1e-5, bias=True)])
def test_norms_compute_in_fp32_and_round_once(dtype, norm):
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm = norm.to(dtype)
    x = (torch.randn(64, 48) * 3).to(dtype)
    low = norm(x)
    high = norm.float()(x.float())
    assert low.dtype == dtype
    # Two orders of summation may fall on either side of a rounding edge: one in a thousand.
    assert (low != high.to(dtype)).float().mean() < 1e-3


def test_tied_embeddings_are_one_parameter(make_model):
    tied, untied = make_model(tied_embeddings=True), make_model(tied_embeddings=False)
    assert tied.head.weight is tied.embedding.weight
    assert "head.weight" not in dict(tied.named_parameters())
    assert "head.weight" in dict(untied.named_parameters())
    ids_BT = torch.randint(0, 61, (1, 4))
    tied.head(tied(ids_BT, causal(ids_BT))).sum().backward()
    assert tied.embedding.weight.grad is not None


def test_no_buffer_has_to_be_saved(make_model):
    assert not list(make_model().buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_keep_the_weights_dtype(make_model, dtype):
    model = make_model(dtype=dtype, qk_norm=True)
    ids_BT = torch.randint(0, 61, (2, 8))
    hidden_BTD = model(ids_BT, causal(ids_BT))
    assert hidden_BTD.dtype == dtype
    assert hidden_BTD.isfinite().all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_blocks_give_the_same_gradients(dropout, every):
    def gradients(every: int) -> list[torch.Tensor]:
        config = DecoderConfig(
            layers=3, width=16, heads=2, dropout=dropout, activation_checkpoint_every=every
        )
        torch.manual_seed(5)
        model = build_model(config, Sizes(vocab_size=11, max_positions=8, sequence_length=8))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        ids_BT = torch.randint(0, 11, (2, 8))
        model.train()(ids_BT, causal(ids_BT)).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for plain, recomputed in zip(gradients(0), gradients(every), strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_every_nth_block_is_recomputed():
    numbers = range(5)
    assert [n for n in numbers if is_recomputed(n, 2, is_training=True)] == [1, 3]
    assert not any(is_recomputed(n, 0, is_training=True) for n in numbers)
    assert not any(is_recomputed(n, 1, is_training=False) for n in numbers)


def test_dropout_acts_in_training_only(make_model):
    model = make_model(dropout=0.5)
    ids_BT = torch.randint(0, 61, (1, 8))
    layout = causal(ids_BT)
    with torch.no_grad():
        assert torch.equal(model(ids_BT, layout), model(ids_BT, layout))
        model.train()
        assert not torch.equal(model(ids_BT, layout), model(ids_BT, layout))


def test_a_block_compiles_to_one_graph(make_model):
    model = make_model(kv_heads=2)
    ids_BT = torch.randint(0, 61, (2, 8))
    begins_BT = torch.zeros(2, 8, dtype=torch.bool)
    begins_BT[:, [0, 3]] = True
    layout = build_layout(begins_BT, "dense")
    expected = model(ids_BT, layout)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)  # fullgraph: a break is an error
    torch.testing.assert_close(model(ids_BT, layout), expected)


class GoneConfig(DecoderConfig):
    implementation = "no_such_package:GONE"


@pytest.mark.parametrize("use", [build_model, account_model])
def test_a_family_that_cannot_be_imported_is_an_error_of_the_configuration(use):
    sizes = Sizes(vocab_size=8, max_positions=8, sequence_length=8)
    with pytest.raises(ConfigError, match="no_such_package:GONE of .*GoneConfig cannot be import"):
        use(GoneConfig(), sizes)
