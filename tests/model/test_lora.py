"""Adapters of low rank: what they compute, how they begin, and what is trained beside them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_run import log_commit
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmscale.config import dump_config
from lmscale.config.lora import LoraConfig
from lmscale.config.model import DecoderConfig, EncoderConfig, EncoderDecoderConfig, Sizes
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError
from lmscale.model.family import account_model, build_model
from lmscale.model.initialize import Linear, declared_parameters
from lmscale.model.lora import (
    Adapted,
    is_adapter,
    is_same_adapter,
    merge_adapter,
    merging,
    read_adapter,
)
from lmscale.runs.beginnings import check_start
from lmscale.train.initial import draw_weights, fill_weights, freeze_parameters

SIZES = Sizes(vocab_size=61, max_positions=16, sequence_length=16)
LORA = {"rank": 2, "alpha": 6}
SHAPE = {"layers": 2, "width": 32, "heads": 4}


def decoder(lora, **settings):
    model = build_model(DecoderConfig.model_validate({**SHAPE, **settings, "lora": lora}), SIZES)
    fill_weights(model, draw_weights(1))
    return model


def drawn(model):
    """Every adapter away from its beginning."""
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            nn.init.normal_(parameter.data, std=0.3)
    return model


def logits_of(model):
    ids_BT = torch.arange(2 * 16).view(2, 16) % 61
    begins_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    return model.head(model(ids_BT, model.lay_out(begins_BT, mask_documents=False)))


@pytest.mark.parametrize("parts", [8, (6, 3, 3)])
@pytest.mark.parametrize("lora", [LORA, LORA | {"rank_stabilized": True}])
def test_each_part_of_a_matrix_gives_w_and_its_own_b_a_and_so_do_the_gradients(parts, lora):
    lora = LoraConfig(**lora)
    base = Linear(5, parts, bias=True, std=1.0)
    for parameter in base.parameters():
        nn.init.normal_(parameter)
    adapted = drawn(Adapted(base, lora))
    rows = list(base.parts)
    a_of = adapted.lora_a.detach().split(2)
    b_of = [adapted.get_parameter(f"lora_b_{n}").detach() for n in range(len(rows))]
    pairs = [
        (a.clone().requires_grad_(), b.clone().requires_grad_())
        for a, b in zip(a_of, b_of, strict=True)
    ]
    scale = 6 / math.sqrt(2) if lora.rank_stabilized else 3
    x = torch.randn(7, 5)
    whole = base.weight.detach() + scale * torch.cat([b @ a for a, b in pairs])
    expected = F.linear(x, whole, base.bias)
    torch.testing.assert_close(adapted(x), expected)
    merged = merge_adapter(base.weight.detach(), adapted.lora_a.detach(), b_of, scale)
    torch.testing.assert_close(merged, whole.detach())
    adapted(x).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(adapted.lora_a.grad, torch.cat([a.grad for a, _ in pairs]))
    for number, (_, b) in enumerate(pairs):
        torch.testing.assert_close(adapted.get_parameter(f"lora_b_{number}").grad, b.grad)


def test_a_model_with_adapters_begins_as_the_one_without():
    plain, adapted = decoder({}), decoder(LORA)
    assert torch.equal(logits_of(plain), logits_of(adapted))
    weights = dict(adapted.named_parameters())
    for name, value in plain.named_parameters():
        assert torch.equal(weights.pop(name), value), name
    assert len(weights) == 2 * (4 + 7)  # an A a matrix, a B each of its parts
    for name, value in weights.items():
        assert is_adapter(name)
        if "lora_b" in name:
            assert not value.any()
            continue
        # U(-1/√inputs, 1/√inputs): torch's kaiming_uniform_ with a = √5, as PEFT has it.
        bound = 1 / math.sqrt(value.shape[1])
        assert value.abs().max() <= bound
        assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    declared = declared_parameters(adapted)
    assert declared["blocks.0.attention.qkv.lora_a"].parts == (2, 2, 2)  # for Muon and Adafactor


def test_an_adapter_is_another_one_s_by_rank_scale_and_targets_in_any_order():
    one = LoraConfig(rank=2, alpha=4, targets=("qkv", "out"))
    for same in ({"targets": ("out", "qkv")}, {"dropout": 0.5}):
        assert is_same_adapter(one, one.model_copy(update=same))
    for other in ({"rank": 4}, {"alpha": 12.0}, {"targets": ("qkv",)}, {"rank_stabilized": True}):
        assert not is_same_adapter(one, one.model_copy(update=other))


def test_merged_it_is_a_model_without_adapters_that_computes_the_same():
    adapted, plain = drawn(decoder(LORA)), decoder({})
    names = dict(adapted.named_parameters()).keys()
    read = merging(lambda name: adapted.get_parameter(name).detach(), names, LoraConfig(**LORA))
    before = logits_of(plain)
    for name, parameter in plain.named_parameters():
        parameter.data = read(name)
    torch.testing.assert_close(logits_of(plain), logits_of(adapted))
    assert not torch.allclose(before, logits_of(plain), atol=1e-3)
    assert read_adapter(read, names, "embedding.weight") is None


def test_dropout_is_of_what_a_reads_alone_and_of_training_alone():
    (base := Linear(4, 4, bias=False, std=1.0)).weight.data = torch.eye(4)
    adapted = Adapted(base, LoraConfig(rank=4, dropout=0.5))
    adapted.lora_a.data = adapted.lora_b_0.data = torch.eye(4)
    x = torch.ones(100, 4)
    change = adapted(x) - x
    assert set(change.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(adapted.eval()(x), 2 * x)


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (["qkv"], {"blocks.0.attention.qkv", "blocks.1.attention.qkv"}),
        (["blocks.1.*"], {f"blocks.1.{n}" for n in (
            "attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")}),
        (["blocks.0.attention.out", "down"],
         {"blocks.0.attention.out", "blocks.0.feed_forward.down", "blocks.1.feed_forward.down"}),
    ],
)  # fmt: skip
def test_targets_are_names_of_matrices_or_patterns_of_whole_ones(targets, adapted):
    model = decoder(LORA | {"targets": targets})
    assert {n for n, m in model.named_modules() if isinstance(m, Adapted)} == adapted


def test_targets_that_name_no_matrix_are_told_together_with_those_there_are():
    with pytest.raises(ConfigError) as caught:
        decoder(LORA | {"targets": ["q_proj", "qkv", "layers.*"]})
    first, second = caught.value.problems
    assert "no matrix is named 'q_proj'" in first and "'layers.*'" in second
    assert "There are: qkv, out, gate_up, down." in first


def trained(model):
    freeze_parameters(model, ())
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_adapters_alone_are_trained_but_for_layers_that_a_task_begins_anew():
    assert all(map(is_adapter, trained(decoder(LORA))))
    pairs = EncoderDecoderConfig(family="encoder_decoder", lora=LoraConfig(**LORA), **SHAPE)
    names = trained(build_model(pairs, SIZES))
    assert all(map(is_adapter, names)) and {n.split(".")[0] for n in names} == {
        "encoder", "decoder",
    }  # fmt: skip
    task = {"family": "encoder", "pooler": True, "text_classes": 3, "lora": LoraConfig(**LORA)}
    others = {n for n in trained(build_model(EncoderConfig(**SHAPE, **task), SIZES))}
    others = {name for name in others if not is_adapter(name)}
    assert others == {f"{n}.{p}" for n in ("pooler", "classifier") for p in ("weight", "bias")}


def test_mup_scales_the_learning_rate_of_a_as_its_matrix_s_and_that_of_b_not():
    declared = declared_parameters(decoder(LORA, mup={"base_width": 8}))
    ratios = {n.rpartition(".")[2]: d.lr_ratio for n, d in declared.items() if ".out." in n}
    assert ratios == {"weight": 0.25, "lora_a": 0.25, "lora_b_0": 1.0}


def test_the_account_counts_adapters_and_leaves_out_gradients_of_what_stays():
    config = DecoderConfig.model_validate({**SHAPE, "lora": LORA})
    model = build_model(config, SIZES)
    account = account_model(config, SIZES)
    assert account.total == sum(parameter.numel() for parameter in model.parameters())
    freeze_parameters(model, ())
    # As torch counts products; what the first block reads needs no gradient, but for that of norms.
    hidden = torch.zeros(3, 16, 32, requires_grad=True)
    model.embedding.register_forward_hook(lambda *_: hidden)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits_BTV = model.head(model(torch.zeros(3, 16, dtype=torch.int64), plain_layout(model)))
        logits_BTV.sum().backward()
    num_scales = (2 * 2 + 1) * 32  # norm weights: in N, but no product of matrices
    expected = account.flops.dense - 4 * num_scales
    assert counter.get_total_flops() == expected * 3 * 16


def plain_layout(model):
    return model.lay_out(torch.zeros(3, 16, dtype=torch.bool), mask_documents=False)


def test_mistakes_of_the_section_are_told_when_it_is_read():
    def told(**model):
        with pytest.raises(ValueError) as caught:
            RunConfig.model_validate({"run": {"name": "a"}, "model": model})
        return str(caught.value)

    assert "rank = 0 gives no adapters, but dropout is given" in told(lora={"dropout": 0.1})
    assert "no recurrent model has adapters" in told(family="recurrent", lora={"rank": 2})


def test_no_run_begins_to_adapt_random_weights_but_one_that_has_may_go_on(tmp_path):
    def start(**run):
        tree = {"run": {"name": "a", "folder": str(tmp_path / "a"), **run}}
        config = RunConfig.model_validate({**tree, "model": {"lora": LORA}})
        check_start(config)
        return config

    with pytest.raises(ConfigError, match="beside random weights.*run.init_from"):
        start()
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.yaml").write_text("run: {name: base}")
    log_commit(base, 3)
    start(init_from="base")
    config = start(allow_faults=True)
    config.folder.mkdir()
    (config.folder / "config.yaml").write_text(dump_config(config))
    start()
