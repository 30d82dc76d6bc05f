"""Settings and tensors of decoders, there and back."""

from __future__ import annotations

import pytest
import torch
from theirs import import_transformers

from lmscale.config.hf.architecture import canonical
from lmscale.config.hf.choose import ARCHITECTURES, choose_architecture, read_section
from lmscale.config.lora import LoraConfig
from lmscale.config.model import DecoderConfig, Sizes
from lmscale.errors import ConfigError
from lmscale.exchange.rules import find_left_out, plan_rules
from lmscale.model.family import build_model

transformers = import_transformers()
LAYERS, VOCAB, LENGTH = 3, 101, 40
SIZES = Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=LENGTH)
GPT2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}
GROUPED = {"kv_heads": 2, "ffn_width": 96}


def scaled(kind: str, **more: float) -> dict:
    return {"rope_theta": 500.0, "rope_scaling": {"kind": kind, "factor": 4.0, **more}}


CASES = {
    "gpt2": ("gpt2", GPT2 | {"tied_embeddings": True}),
    "gpt2 untied, exact gelu": ("gpt2", GPT2 | {"activation": "gelu_exact"}),
    "llama": ("llama", GROUPED | {"tied_embeddings": True}),
    "llama, own head width, geglu": ("llama", GROUPED | {"head_width": 20, "activation": "geglu"}),
    "llama with biases": ("llama", GROUPED | {"bias": True}),
    "linear": ("llama", GROUPED | scaled("linear")),
    "llama3": ("llama", GROUPED | scaled("llama3", original_positions=16)),
    "yarn": ("llama", GROUPED | scaled("yarn", original_positions=16)),
    "mistral": ("mistral", GROUPED | {"sliding_windows": (9,)}),
    "qwen2": ("qwen2", GROUPED | {"qkv_bias": True}),
    "qwen3": ("qwen3", GROUPED | {"qk_norm": True, "head_width": 16}),
    "qwen3 with windows": ("qwen3", GROUPED | {"qk_norm": True, "sliding_windows": (9, 0)}),
    "starcoder2": (
        "starcoder2",
        GROUPED | {"norm": "layernorm", "activation": "gelu", "bias": True}
        | {"sliding_windows": (9,)},
    ),
    "gemma": ("gemma", GROUPED | {"activation": "geglu", "scaled_embeddings": True}),
    "gemma2": (
        "gemma2",
        GROUPED | {"activation": "geglu", "sliding_windows": (9, 0), "tied_embeddings": True}
        | {"output_norms": True, "scaled_embeddings": True, "attention_width": 20}
        | {"attention_softcap": 5.0, "logit_softcap": 3.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_decoder_is_its_architecture_in_settings_and_logits(case):
    model_type, settings = CASES[case]
    section = DecoderConfig(layers=LAYERS, width=48, heads=4, **settings)
    architecture = choose_architecture(section, SIZES)
    assert architecture.model_type == model_type
    model = build_model(section, SIZES).eval()
    for name, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.1)

    class_name = architecture.classes["tokens"]
    config = transformers.AutoConfig.for_model(model_type, **architecture.render(section, SIZES))
    assert canonical(read_section(config.to_dict(), "it")[1]) == canonical(section)
    theirs = getattr(transformers, class_name)(config).eval()
    rules = plan_rules(architecture, model)
    assert not find_left_out(architecture, model)
    stored = {}
    for rule in rules:
        value = model.get_parameter(rule.name)
        tensors = dict(rule.to_theirs(value))
        assert {name: tuple(each.shape) for name, each in tensors.items()} == rule.their_shapes
        assert torch.equal(rule.to_ours(tensors.__getitem__), value) or rule.form == "less_one"
        stored |= tensors
    missing, unexpected = theirs.load_state_dict(stored, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()

    ids_BT = torch.randint(0, VOCAB, (2, LENGTH))
    layout = model.lay_out(torch.zeros_like(ids_BT, dtype=torch.bool), mask_documents=False)
    logits_BTV, their_BTV = model.head(model(ids_BT, layout)), theirs(ids_BT).logits
    assert (logits_BTV - their_BTV).norm() <= 1e-5 * their_BTV.norm()


def test_what_no_architecture_is_is_told_with_what_to_change():
    section = DecoderConfig(qk_norm=True, bias=True)
    with pytest.raises(ConfigError, match=r"nearest one is llama; .* qk_norm = true \(there false"):
        choose_architecture(section, SIZES)


def test_every_architecture_renders_what_it_reads():
    for architecture in ARCHITECTURES.values():
        if architecture.family == "decoder":
            architecture.read(architecture.render(DecoderConfig(), SIZES))


def test_a_section_with_adapters_is_what_it_is_with_them_merged():
    plain = DecoderConfig(**GROUPED)
    adapted = plain.model_copy(update={"lora": LoraConfig(rank=4)})
    assert choose_architecture(adapted, SIZES) is choose_architecture(plain, SIZES)
    assert adapted.without_adapters == plain != adapted
