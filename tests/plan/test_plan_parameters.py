"""The planner's parameters are torch's."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config.lora import LoraConfig
from lmscale.config.model import (
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    MupConfig,
    RecurrentConfig,
    Sizes,
)
from lmscale.config.model_base import ModelConfig
from lmscale.model.family import build_model_on
from lmscale.model.initialize import declared_parameters
from lmscale.model.lora import is_adapter
from lmscale.plan.operations import list_parameters

SIZES = Sizes(vocab_size=96, max_positions=24, sequence_length=16)
ACTIVATIONS = ("gelu", "relu", "swiglu", "geglu_exact")
LORAS = (LoraConfig(), LoraConfig(rank=2), LoraConfig(rank=3, targets=("qkv", "*.down")))

decoders = st.builds(
    DecoderConfig,
    layers=st.integers(1, 3),
    width=st.just(24),
    heads=st.just(4),
    kv_heads=st.sampled_from([None, 1, 2]),
    head_width=st.sampled_from([None, 8]),
    ffn_width=st.sampled_from([None, 20]),
    positions=st.sampled_from(["rope", "learned"]),
    norm=st.sampled_from(["rmsnorm", "layernorm"]),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    qkv_bias=st.booleans(),
    output_norms=st.booleans(),
    qk_norm=st.booleans(),
    tied_embeddings=st.booleans(),
    text_classes=st.sampled_from([0, 3]),
    mup=st.sampled_from([MupConfig(), MupConfig(base_width=8)]),
    lora=st.sampled_from(LORAS),
)
encoders = st.builds(
    EncoderConfig,
    family=st.just("encoder"),
    layers=st.integers(1, 3),
    width=st.just(24),
    heads=st.just(4),
    positions=st.sampled_from(["rope", "learned"]),
    token_types=st.sampled_from([0, 2]),
    norm=st.sampled_from(["rmsnorm", "layernorm"]),
    norm_first=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    pooler=st.just(True),
    text_classes=st.sampled_from([0, 3]),
    token_classes=st.sampled_from([0, 5]),
    tied_embeddings=st.booleans(),
    lora=st.sampled_from(LORAS),
)
encoder_decoders = st.builds(
    EncoderDecoderConfig,
    family=st.just("encoder_decoder"),
    layers=st.integers(1, 2),
    decoder_layers=st.sampled_from([None, 3]),
    width=st.just(24),
    heads=st.just(4),
    head_width=st.sampled_from([None, 8]),
    positions=st.sampled_from(["relative", "learned"]),
    norm=st.sampled_from(["rmsnorm", "layernorm"]),
    norm_first=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    tied_embeddings=st.booleans(),
    lora=st.sampled_from([LoraConfig(), LoraConfig(rank=2, targets=("query", "*.key_value"))]),
)
recurrents = st.builds(
    RecurrentConfig,
    cell=st.sampled_from(["lstm", "gru", "rnn"]),
    layers=st.integers(1, 3),
    width=st.just(24),
    tied_embeddings=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(decoders | encoders | encoder_decoders | recurrents)
def test_parameters_are_those_that_torch_lists_in_its_order(config: ModelConfig):
    model = build_model_on(config, SIZES, device=torch.device("meta"), dtype=torch.float32)
    declared = declared_parameters(model)
    expected = [
        (name, tuple(p.shape), declared[name].kind, declared[name].lr_ratio, is_adapter(name))
        for name, p in model.named_parameters()
    ]
    planned = list_parameters(config, SIZES)
    assert expected == [(p.name, p.shape, p.kind, p.lr_ratio, p.is_adapter) for p in planned]
    of_matrices = {p.name: p.parts for p in planned if p.kind == "linear"}
    assert of_matrices == {
        name: what.parts for name, what in declared.items() if what.kind == "linear"
    }
