"""Adapters of ours on transformers' models, by PEFT's own loading: logits and every gradient."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from safetensors.torch import save_file
from theirs import draw_weights, import_transformers, open_theirs

from lmscale.config.hf.choose import choose_architecture
from lmscale.config.model import FAMILIES, Sizes
from lmscale.exchange.peft_adapter import (
    PREFIX,
    plan_adapters,
    render_adapter,
    render_adapter_config,
)
from lmscale.exchange.rules import plan_rules
from lmscale.model.family import build_model
from lmscale.model.lora import read_adapter

import_transformers()
VOCAB, LENGTH = 101, 24
SIZES = Sizes(vocab_size=VOCAB, max_positions=32, sequence_length=LENGTH)
SHAPE = {"layers": 2, "width": 48, "heads": 4}
LLAMA = {"kv_heads": 2, "ffn_width": 96}
GPT2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}
BERT = {"family": "encoder", "pooler": True, "text_classes": 3, "token_types": 2}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SECOND = "model.layers.1.mlp."
STABLE = {"rank": 4, "alpha": 6, "rank_stabilized": True}
ROOT = 2.0  # of the rank

CASES = {
    "llama": (LLAMA, {"rank": 3, "alpha": 6}, "tokens", {"r": 3, "target_modules": ALL}),
    "some of llama": (
        LLAMA,
        STABLE | {"targets": ["qkv", "blocks.1.feed_forward.*"]},
        "tokens",
        {
            "task_type": "CAUSAL_LM",
            "use_rslora": True,
            "lora_alpha": 6,
            "target_modules": [*ALL[:3], *(f"{SECOND}{name}" for name in ALL[4:])],
        },
    ),
    # One matrix of queries, keys and values there: an adapter of three times the rank.
    "gpt2": (
        GPT2 | {"tied_embeddings": True},
        STABLE,
        "tokens",
        {
            "r": 4,
            "use_rslora": False,
            "lora_alpha": 6 / ROOT * 4,
            "target_modules": ["c_attn", "c_proj", "c_fc"],
            "rank_pattern": {"c_attn": 12},
            "alpha_pattern": {"c_attn": 6 / ROOT * 12},
            "fan_in_fan_out": True,
        },
    ),
    # A classifier and the layer before it are trained whole; a word that both have names neither.
    "bert": (
        BERT,
        {"rank": 2, "targets": ["qkv", "out"]},
        "texts",
        {
            "task_type": "SEQ_CLS",
            "modules_to_save": ["bert.pooler.dense", "classifier"],
            "target_modules": [
                *("query", "key", "value"),
                *(f"bert.encoder.layer.{n}.attention.output.dense" for n in range(2)),
            ],
        },
    ),
    "t5": (
        {"family": "encoder_decoder"},
        {"rank": 2},
        "pairs",
        {"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "k", "v", "o", "wi", "wo"]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def peft():
    return importlib.import_module("peft")  # some seconds


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of PEFT's asking
@pytest.mark.parametrize("case", CASES)
def test_peft_gives_our_logits_gradients_and_merged_matrices(peft, tmp_path, case):
    settings, lora, head, expected = CASES[case]
    tree = {**SHAPE, **settings, "lora": lora}
    section = FAMILIES.section_for(tree).model_validate(tree)
    model = build_model(section, SIZES).eval()
    draw_weights(model)
    plain = build_model(section.without_adapters, SIZES)
    plain.load_state_dict(model.state_dict(), strict=False)
    whole = [name for name in dict(plain.named_parameters()) if plain.begins_anew(name)]
    for name in whole:  # another one than that of the base
        torch.nn.init.normal_(model.get_parameter(name), std=0.1)
    architecture = choose_architecture(section, SIZES)
    base, rules = open_theirs(
        tmp_path, plain, architecture, section.without_adapters, SIZES, head=head,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    assert rules == plan_rules(architecture, plain, head)
    adapters = plan_adapters(model, rules)
    names = {name for name, _ in model.named_parameters()}

    def as_theirs(read):
        for adapter in adapters:
            ours = read_adapter(read, names, adapter.matrix)
            yield from render_adapter(adapter, *ours).items()
        for rule in rules:
            if rule.name in whole:
                for name, value in rule.to_theirs(read(rule.name)):
                    yield f"{PREFIX}{name}", value

    saved = [name.rpartition(".")[0] for r in rules if r.name in whole for name in r.theirs]
    config = render_adapter_config(
        section.lora,
        adapters,
        base="base",
        head=head,
        matrices=[n.removesuffix(".weight") for r in rules if len(r.shape) == 2 for n in r.theirs],
        is_transposed=any(rule.form == "transposed" for rule in rules),
        saved_modules=list(dict.fromkeys(saved)),
    )
    assert {key: config[key] for key in expected} == expected
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    stored = dict(as_theirs(lambda name: model.get_parameter(name).detach()))
    save_file(stored, tmp_path / "adapter_model.safetensors")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()

    ids_BT = torch.randint(0, VOCAB, (2, LENGTH))
    logits, their_logits = ours_of(model, ids_BT, head), theirs_of(theirs, ids_BT, head)
    close(logits, their_logits)
    for each in (logits, their_logits):
        each.log_softmax(-1)[..., 2].sum().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    for name, ours in as_theirs(lambda name: model.get_parameter(name).grad):
        module, leaf = name.rpartition(".")[::2]
        is_adapter = "lora_" in name
        found = gradients.pop(f"{module}{'' if is_adapter else '.modules_to_save'}.default.{leaf}")
        close(ours, found * (ours != 0))  # outside of the blocks of a B there is nothing of ours
    assert not gradients
    close(theirs_of(theirs.merge_and_unload(), ids_BT, head), their_logits)


def ours_of(model, ids_BT, head):
    begins_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    layout = model.lay_out(begins_BT, mask_documents=False)
    if head == "pairs":
        layout = model.lay_out_target(begins_BT, ids_BT, layout)
    hidden_BTD = model(ids_BT, layout)
    return model.classify(hidden_BTD[:, 0]) if head == "texts" else model.head(hidden_BTD)


def theirs_of(theirs, ids_BT, head):
    more = {"decoder_input_ids": ids_BT} if head == "pairs" else {}
    return theirs(input_ids=ids_BT, **more).logits


def close(ours, theirs):
    """By the norm of the difference: some elements are sums that cancel."""
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
