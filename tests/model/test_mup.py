"""muP: a model as wide as its base is the usual one; a wider one begins and learns otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_run import tiny_config
from torch.testing import assert_close

from lmscale.config.load import parse_config
from lmscale.config.model import DecoderConfig, Sizes
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError
from lmscale.model.family import build_model
from lmscale.model.initialize import declared_parameters
from lmscale.runs.continuation import model_identity
from lmscale.train.initial import draw_weights, fill_weights

SIZES = Sizes(vocab_size=64, max_positions=16, sequence_length=16)
SHAPE = {"layers": 2, "width": 32, "heads": 4, "ffn_width": 64}


def make_model(**settings):
    model = build_model(DecoderConfig.model_validate({**SHAPE, **settings}), SIZES)
    fill_weights(model, draw_weights(1))
    return model


@torch.no_grad()
def logits_of(model):
    ids = torch.arange(16).view(1, 16)
    begins = torch.zeros_like(ids, dtype=torch.bool)
    return model.head(model(ids, model.lay_out(begins, mask_documents=False)))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_as_wide_as_its_base_is_the_usual_one_bit_by_bit(tied):
    usual = make_model(tied_embeddings=tied)
    scaled = make_model(tied_embeddings=tied, mup={"base_width": 32, "base_head_width": 8})
    assert torch.equal(logits_of(usual), logits_of(scaled))
    assert declared_parameters(usual) == declared_parameters(scaled)


def test_a_wider_model_has_table_8_of_tensor_programs_v():
    usual, scaled = make_model(bias=True), make_model(bias=True, mup={"base_width": 8})
    before, after = declared_parameters(usual), declared_parameters(scaled)
    for name, what in after.items():
        is_matrix = name.startswith("blocks.") and what.kind == "linear"
        assert what.lr_ratio == (1 / 4 if is_matrix else 1)
        if what.std is not None:
            assert what.std == pytest.approx(before[name].std / (2 if is_matrix else 1))
    assert scaled.head.scale == 1 / 4
    hidden = torch.randn(3, 32)
    assert_close(scaled.head(hidden) * 4, hidden @ scaled.head.weight.T)


def test_scores_are_divided_by_the_width_of_heads_that_grow():
    config = DecoderConfig.model_validate({**SHAPE, "mup": {"base_width": 8, "base_head_width": 2}})
    assert config.attention_scale == pytest.approx(math.sqrt(2) / 8)
    usual, scaled = make_model(), make_model(mup={"base_width": 32, "base_head_width": 2})
    with torch.no_grad():
        for block in usual.blocks:  # the queries' rows are the first
            block.attention.qkv.weight[:32] *= math.sqrt(2) / 8 * math.sqrt(8)
    assert_close(logits_of(scaled), logits_of(usual))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"engine.optimizer.kind": "muon"}, "model.mup scales learning rates as Adam"),
        ({"engine.optimizer.kind": "adafactor"}, "as Adam and its like need it, not adafactor"),
        ({"engine.optimizer.kind": "sgd"}, "kind to adamw, adam, lion or schedule_free"),
        ({"model.mup.base_width": 0, "model.mup.base_head_width": 4}, "base_width is to be given"),
    ],
)
def test_what_mup_cannot_be_is_told_with_the_configuration(tmp_path, overrides, problem):
    with pytest.raises(ValueError, match=problem):
        tiny_config(tmp_path, tmp_path, {"model.mup": {"base_width": 8}} | overrides)


def test_a_checkpoint_of_a_run_without_mup_knows_nothing_of_it(tmp_path):
    config: RunConfig = tiny_config(tmp_path, tmp_path)
    assert "mup" not in model_identity(config)
    scaled = tiny_config(tmp_path, tmp_path, {"model.mup.base_width": 8})
    assert model_identity(scaled)["mup"] == {"base_width": 8, "base_head_width": 0}


def test_a_family_without_mup_refuses_it_and_says_which_has_it():
    with pytest.raises(ConfigError) as caught:
        parse_config("{run: {name: a}, model: {family: recurrent, mup: {base_width: 8}}}")
    assert caught.value.problems[0].startswith("config:1: model.mup: unknown key. Known here: ")
    assert caught.value.problems[0].endswith(" It is one of model.family: decoder.")
