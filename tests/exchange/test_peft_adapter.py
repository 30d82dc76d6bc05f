"""Adapters of ours on transformers' models, by PEFT's own loading: logits and every gradient."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from safetensors.torch import save_file
from theirs import import_transformers

from lmscale.config.hf.choose import choose_architecture
from lmscale.config.model import DecoderConfig, Sizes
from lmscale.exchange.peft_adapter import plan_adapters, render_adapter, render_adapter_config
from lmscale.exchange.rules import plan_rules
from lmscale.model.family import build_model
from lmscale.model.lora import read_adapter

transformers = import_transformers()
VOCAB, LENGTH = 101, 24
SIZES = Sizes(vocab_size=VOCAB, max_positions=32, sequence_length=LENGTH)
LLAMA = {"kv_heads": 2, "ffn_width": 96}
GPT2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SECOND = "model.layers.1."
STABLE = {"rank": 4, "alpha": 6, "rank_stabilized": True}
ROOT = 2.0  # of the rank

CASES = {
    "llama": (LLAMA, {"rank": 3, "alpha": 6}, {"lora_alpha": 6, "target_modules": ALL}),
    "some of llama": (
        LLAMA,
        STABLE | {"targets": ["qkv", "blocks.1.feed_forward.*"]},
        {
            "use_rslora": True,
            "lora_alpha": 6,
            "target_modules": [*ALL[:3], *(f"{SECOND}mlp.{name}" for name in ALL[4:])],
        },
    ),
    # One matrix of queries, keys and values there: an adapter of three times the rank.
    "gpt2": (
        GPT2,
        STABLE,
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
}


@pytest.fixture(scope="module")
def peft():
    return importlib.import_module("peft")  # some seconds


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of PEFT's asking
@pytest.mark.parametrize("case", CASES)
def test_peft_gives_our_logits_gradients_and_merged_matrices(peft, tmp_path, case):
    settings, lora, expected = CASES[case]
    tree = {"layers": 2, "width": 48, "heads": 4, "tied_embeddings": True, **settings}
    section = DecoderConfig.model_validate({**tree, "lora": lora})
    model = build_model(section, SIZES).eval()
    for name, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.1)
    architecture = choose_architecture(section, SIZES)
    rules = plan_rules(architecture, build_model(section.without_adapters, SIZES))
    adapters = plan_adapters(model, rules)
    base = build_theirs(architecture, section, rules, model)
    names = {name for name, _ in model.named_parameters()}

    def as_theirs(read):
        for adapter in adapters:
            ours = read_adapter(read, names, adapter.matrix)
            yield from render_adapter(adapter, *ours).items()

    config = render_adapter_config(
        section.lora,
        adapters,
        base="base",
        head="tokens",
        matrices=[n.removesuffix(".weight") for r in rules if len(r.shape) == 2 for n in r.theirs],
        is_transposed=any(rule.form == "transposed" for rule in rules),
        saved_modules=(),
    )
    assert {key: config[key] for key in expected} == expected
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    stored = dict(as_theirs(lambda name: model.get_parameter(name).detach()))
    save_file(stored, tmp_path / "adapter_model.safetensors")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()

    ids_BT = torch.randint(0, VOCAB, (2, LENGTH))
    layout = model.lay_out(torch.zeros_like(ids_BT, dtype=torch.bool), mask_documents=False)
    logits_BTV, their_BTV = model.head(model(ids_BT, layout)), theirs(ids_BT).logits
    close(logits_BTV, their_BTV)
    for logits in (logits_BTV, their_BTV):
        logits.log_softmax(-1)[..., 3].sum().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    for name, ours in as_theirs(lambda name: model.get_parameter(name).grad):
        found = gradients.pop(name.replace(".weight", ".default.weight"))
        close(ours, found * (ours != 0))  # outside of the blocks of a B there is nothing of ours
    assert not gradients
    close(theirs.merge_and_unload()(ids_BT).logits, their_BTV)


def build_theirs(architecture, section, rules, model):
    """The base, with our frozen weights."""
    settings = architecture.render(section.without_adapters, SIZES)
    config = transformers.AutoConfig.for_model(
        architecture.model_type, bos_token_id=1, eos_token_id=2, **settings
    )
    theirs = getattr(transformers, architecture.classes["tokens"])(config).eval()
    stored = {}
    for rule in rules:
        stored |= dict(rule.to_theirs(model.get_parameter(rule.name).detach()))
    theirs.load_state_dict(stored, strict=False)
    theirs.tie_weights()
    return theirs


def close(ours, theirs):
    """By the norm of the difference: some elements are sums that cancel."""
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
