"""Parameter and FLOP counts are exact."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmscale.config.model import DecoderConfig, EncoderConfig, Sizes
from lmscale.model.family import Account, account_model, build_model
from lmscale.model.layout import build_layout

SWITCHES = {
    "positions": ["rope", "learned"],
    "norm": ["rmsnorm", "layernorm"],
    "activation": ["swiglu", "gelu"],
    "bias": [False, True],
    "qkv_bias": [False, True],
    "kv_heads": [None, 2],
    "qk_norm": [False, True],
    "tied_embeddings": [False, True],
    "head_width": [None, 10],
}
GPT2_124M = DecoderConfig(
    positions="learned", norm="layernorm", activation="gelu", bias=True, tied_embeddings=True
)
LLAMA2_7B = DecoderConfig(layers=32, width=4096, heads=32, ffn_width=11008)


def cost(config: DecoderConfig, vocab_size: int, length: int) -> Account:
    sizes = Sizes(vocab_size=vocab_size, max_positions=length, sequence_length=length)
    return account_model(config, sizes)


def num_parameters(config: DecoderConfig, vocab_size: int, max_positions: int) -> int:
    with torch.device("meta"):
        model = build_model(
            config,
            Sizes(
                vocab_size=vocab_size, max_positions=max_positions, sequence_length=max_positions
            ),
        )
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_count_is_the_model_s_for_every_combination_of_switches():
    for values in product(*SWITCHES.values()):
        switches = dict(zip(SWITCHES, values, strict=True))
        config = DecoderConfig(layers=2, width=32, heads=4, **switches)
        expected = num_parameters(config, 53, 17)
        assert cost(config, 53, 17).total == expected, switches


def test_gpt2_small_has_its_124_439_808_parameters():
    assert num_parameters(GPT2_124M, 50257, 1024) == 124_439_808
    assert cost(GPT2_124M, 50257, 1024).total == 124_439_808


def test_llama_2_7b_has_its_6_738_415_616_parameters():
    assert num_parameters(LLAMA2_7B, 32000, 4096) == 6_738_415_616
    assert cost(LLAMA2_7B, 32000, 4096).total == 6_738_415_616


def test_norms_of_outputs_are_counted():
    config = DecoderConfig(layers=2, width=32, heads=4, output_norms=True)
    assert cost(config, 53, 17).total == num_parameters(config, 53, 17)


def test_flops_follow_the_published_formula():
    flops = cost(GPT2_124M, 50257, 1024).flops
    # nanoGPT prints "number of parameters: 123.65M" for it: all but the positions.
    assert flops.dense == 6 * 123_653_376 + 12 * 12 * 768 * 1024
    assert flops.causal == 6 * 123_653_376 + 6 * 12 * 768 * 1024


def test_a_layer_with_a_sliding_window_looks_at_no_more_than_that():
    """Pairs of a query and a key counted one by one; a convention has half a query's own."""
    length, queries = 16, 32
    for window in (0, 1, 4, 16, 40):
        whole, flops = (
            cost(DecoderConfig(layers=2, width=32, heads=4, sliding_windows=windows), 53, 16).flops
            for windows in ((), (0, window))
        )
        pairs = [
            min(query + 1, window or length) - 0.5 * (query < (window or length))
            for query in range(length)
        ]
        seen = sum(pairs) / length
        assert whole.causal - flops.causal == pytest.approx(12 * queries * (length / 2 - seen))
        seen = min(window or length, length)
        assert whole.dense - flops.dense == 12 * queries * (length - seen)
    for window, seen in ((0, 16), (3, 5), (9, 16)):
        settings = {"family": "encoder", "layers": 1, "width": 32, "heads": 2}
        sizes = Sizes(vocab_size=53, max_positions=16, sequence_length=16)
        whole, flops = (
            account_model(EncoderConfig(**settings, sliding_windows=windows), sizes).flops
            for windows in ((), (window,))
        )
        assert whole.dense - flops.dense == whole.causal - flops.causal == 12 * 32 * (16 - seen)


@pytest.mark.parametrize(
    "switches",
    [{}, {"kv_heads": 2}, {"activation": "gelu", "tied_embeddings": True}, {"head_width": 16}],
)
def test_forward_flops_are_those_that_torch_counts(switches):
    config = DecoderConfig(layers=2, width=32, heads=4, **switches)
    model = build_model(config, Sizes(vocab_size=53, max_positions=16, sequence_length=16))
    begins_BT = torch.zeros(3, 16, dtype=torch.bool)
    layout = build_layout(begins_BT, "causal")
    # The math backend is made of products that the counter knows; the CPU's fused one is not.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.head(model(torch.zeros(3, 16, dtype=torch.int64), layout))
    num_scales = (2 * 2 + 1) * 32  # norm weights: in N, but no product of matrices
    expected = cost(config, 53, 16).flops.dense / 3 - 2 * num_scales
    assert counter.get_total_flops() == expected * 3 * 16
