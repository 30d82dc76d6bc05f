"""Parameter and FLOP counts are exact."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmscale.config.model import ModelConfig
from lmscale.model import build_layout, build_model, count_parameters, flops_per_token

SWITCHES = {
    "positions": ["rope", "learned"],
    "norm": ["rmsnorm", "layernorm"],
    "activation": ["swiglu", "gelu"],
    "bias": [False, True],
    "kv_heads": [None, 2],
    "qk_norm": [False, True],
    "tied_embeddings": [False, True],
    "head_width": [None, 10],
}
GPT2_124M = ModelConfig(
    positions="learned", norm="layernorm", activation="gelu", bias=True, tied_embeddings=True
)
LLAMA2_7B = ModelConfig(layers=32, width=4096, heads=32, ffn_width=11008)


def num_parameters(config: ModelConfig, vocab_size: int, max_positions: int) -> int:
    with torch.device("meta"):
        model = build_model(config, vocab_size=vocab_size, max_positions=max_positions)
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_count_is_the_model_s_for_every_combination_of_switches():
    for values in product(*SWITCHES.values()):
        switches = dict(zip(SWITCHES, values, strict=True))
        config = ModelConfig(layers=2, width=32, heads=4, **switches)
        expected = num_parameters(config, 53, 17)
        assert count_parameters(config, 53, 17).total == expected, switches


def test_gpt2_small_has_its_124_439_808_parameters():
    assert num_parameters(GPT2_124M, 50257, 1024) == 124_439_808
    assert count_parameters(GPT2_124M, 50257, 1024).total == 124_439_808
    # nanoGPT prints "number of parameters: 123.65M" for it: all but the positions.
    assert count_parameters(GPT2_124M, 50257, 1024).computing == 123_653_376


def test_llama_2_7b_has_its_6_738_415_616_parameters():
    assert num_parameters(LLAMA2_7B, 32000, 4096) == 6_738_415_616
    assert count_parameters(LLAMA2_7B, 32000, 4096).total == 6_738_415_616


def test_flops_follow_the_published_formula():
    flops = flops_per_token(GPT2_124M, vocab_size=50257, sequence_length=1024)
    assert flops.dense == 6 * 123_653_376 + 12 * 12 * 768 * 1024
    assert flops.causal == 6 * 123_653_376 + 6 * 12 * 768 * 1024
    assert flops.forward * 3 == flops.dense


@pytest.mark.parametrize(
    "switches",
    [{}, {"kv_heads": 2}, {"activation": "gelu", "tied_embeddings": True}, {"head_width": 16}],
)
def test_forward_flops_are_those_that_torch_counts(switches):
    config = ModelConfig(layers=2, width=32, heads=4, **switches)
    model = build_model(config, vocab_size=53, max_positions=16)
    begins_BT = torch.zeros(3, 16, dtype=torch.bool)
    layout = build_layout(begins_BT, mask_documents=False, backend="causal")
    # The math backend is made of products that the counter knows; the CPU's fused one is not.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.head(model(torch.zeros(3, 16, dtype=torch.int64), layout))
    num_scales = (2 * 2 + 1) * 32  # norm weights: in N, but no product of matrices
    expected = flops_per_token(config, vocab_size=53, sequence_length=16).forward - 2 * num_scales
    assert counter.get_total_flops() == expected * 3 * 16
