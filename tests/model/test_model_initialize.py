"""Initial values depend on the seed and the name only, and their spread on the depth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lmscale.config.model import DecoderConfig, Sizes
from lmscale.config.objective import CausalConfig
from lmscale.errors import ConfigError
from lmscale.model.family import Family, account_model, build_model
from lmscale.model.initialize import Declared, initial_value, parameter_kinds
from lmscale.objective.causal_scoring import build_causal_scoring
from lmscale.train.initial import draw_weights, fill_weights

UNDECLARED = Family(
    build=lambda settings, sizes: nn.Sequential(nn.Linear(2, 2)), account=account_model
)


def build(config: DecoderConfig, seed: int = 1, dtype=torch.float32):
    model = build_model(config, Sizes(vocab_size=211, max_positions=64, sequence_length=64)).to(
        dtype
    )
    fill_weights(model, draw_weights(seed))
    return model


@pytest.mark.parametrize("layers", [2, 8])
def test_matrices_that_write_to_the_residual_stream_shrink_with_the_depth(layers):
    model = build(DecoderConfig(layers=layers, width=64, heads=4, positions="learned"))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            continue
        expected = 0.02
        if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
            expected /= math.sqrt(2 * layers)
        # The spread of a sample's standard deviation is std / sqrt(2n); five of them.
        assert parameter.std().item() == pytest.approx(
            expected, rel=5 / math.sqrt(2 * parameter.numel())
        )
        assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel())


def test_norms_begin_at_one_and_biases_at_zero():
    model = build(DecoderConfig(layers=1, width=32, heads=4, norm="layernorm", bias=True))
    kinds = parameter_kinds(model)
    for name, parameter in model.named_parameters():
        if kinds[name] in ("norm", "bias"):
            assert parameter.unique().tolist() == [1.0 if kinds[name] == "norm" else 0.0]


def test_values_depend_on_the_seed_and_the_name_only():
    shallow = build(DecoderConfig(layers=2, width=32, heads=4))
    torch.manual_seed(99)
    wide_vocabulary = build(DecoderConfig(layers=2, width=32, heads=4, tied_embeddings=True))
    other_seed = build(DecoderConfig(layers=2, width=32, heads=4), seed=2)
    for name, parameter in wide_vocabulary.named_parameters():
        assert torch.equal(parameter, dict(shallow.named_parameters())[name])
    assert not torch.equal(other_seed.embedding.weight, shallow.embedding.weight)
    first, second = shallow.blocks[0].attention.qkv, shallow.blocks[1].attention.qkv
    assert not torch.equal(first.weight, second.weight)


def test_a_low_precision_model_gets_the_same_values_rounded():
    config = DecoderConfig(layers=1, width=32, heads=4)
    full, low = build(config), build(config, dtype=torch.bfloat16)
    for a, b in zip(full.parameters(), low.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)


def test_one_parameter_can_be_made_without_the_model():
    config = DecoderConfig(layers=2, width=32, heads=4)
    model = build(config)
    name = "blocks.1.feed_forward.down.weight"
    parameter = model.get_parameter(name)
    declared = Declared(kind="linear", std=0.02 / math.sqrt(2 * 2))
    assert torch.equal(initial_value(name, parameter.shape, declared, 1), parameter)


def test_the_values_are_the_recorded_ones():
    """A change here changes every new run: say so in the changelog."""
    declared = Declared(kind="embedding", std=0.02)
    value = initial_value("embedding.weight", (4, 32), declared, 1)
    assert value[0, :3].tolist() == pytest.approx(RECORDED, rel=1e-5)


def test_a_parameter_that_no_module_declares_is_named():
    class Undeclared(DecoderConfig):
        implementation = f"{__name__}:UNDECLARED"

    with pytest.raises(ConfigError) as caught:
        build_model(Undeclared(), Sizes(vocab_size=8, max_positions=8, sequence_length=8))
    assert "'decoder': no module declares the parameters 0.weight, 0.bias. " in str(caught.value)


def test_a_module_may_declare_the_parameters_of_its_children():
    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.LSTM(4, 4, bias=False)

        def declare(self):
            spread = {f"cells.weight_{side}_l0": 0.1 for side in ("ih", "hh")}
            parts = (4,) * 4  # its gates
            return {n: Declared(kind="linear", std=std, parts=parts) for n, std in spread.items()}

    model = nn.Sequential(Cells())
    fill_weights(model, draw_weights(1))
    assert set(parameter_kinds(model).values()) == {"linear"}
    assert model[0].cells.weight_ih_l0.std().item() == pytest.approx(0.1, rel=0.4)


RECORDED = [0.026327066123485565, -0.01804373599588871, 0.03864332288503647]


@pytest.mark.parametrize("is_tied", [False, True])
def test_every_parameter_has_its_kind_also_when_wrapped(is_tied):
    config = DecoderConfig(
        layers=1, width=32, heads=4, norm="layernorm", bias=True, positions="learned",
        qk_norm=True, tied_embeddings=is_tied,
    )  # fmt: skip
    model = build_model(config, Sizes(vocab_size=211, max_positions=64, sequence_length=64))
    kinds = parameter_kinds(build_causal_scoring(model, CausalConfig()))
    assert set(kinds) == {f"model.{name}" for name, _ in model.named_parameters()}
    by_kind = {kind: {n for n, k in kinds.items() if k == kind} for kind in set(kinds.values())}
    head = set() if is_tied else {"model.head.weight"}
    assert by_kind["embedding"] == {"model.embedding.weight", "model.position_embedding.weight"}
    block = "model.blocks.0."
    assert by_kind.get("head", set()) == head
    assert by_kind["linear"] == {
        f"{block}{name}.weight"
        for name in ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")
    }
    assert all(name.endswith(".bias") for name in by_kind["bias"])
    assert by_kind["norm"] == {
        "model.norm.weight",
        *(
            f"{block}{name}.weight"
            for name in (
                "attention_norm",
                "feed_forward_norm",
                "attention.query_norm",
                "attention.key_norm",
            )
        ),
    }
