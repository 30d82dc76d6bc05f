"""The decoder's switches make GPT-2, Llama, Qwen and others: logits, loss and every gradient are
those of Hugging Face's models with the same random weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from theirs import import_transformers
from torch import Tensor

from lmscale.config.model import DecoderConfig, Sizes
from lmscale.config.objective import CausalConfig
from lmscale.model.family import build_model
from lmscale.objective.causal_scoring import build_causal_scoring

transformers = import_transformers()
LAYERS, VOCAB, LENGTH = 3, 101, 40
SIZES = Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=LENGTH)

# A module of ours → theirs, whose rows follow each other in it.
GPT2 = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "attention_norm": "transformer.h.{layer}.ln_1",
    "attention.qkv": "transformer.h.{layer}.attn.c_attn",
    "attention.out": "transformer.h.{layer}.attn.c_proj",
    "feed_forward_norm": "transformer.h.{layer}.ln_2",
    "feed_forward.up": "transformer.h.{layer}.mlp.c_fc",
    "feed_forward.down": "transformer.h.{layer}.mlp.c_proj",
}
_ATTENTION, _INNER = "model.layers.{layer}.self_attn.", "model.layers.{layer}.mlp."
LLAMA = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "model.layers.{layer}.input_layernorm",
    "attention.qkv": f"{_ATTENTION}q_proj {_ATTENTION}k_proj {_ATTENTION}v_proj",
    "attention.query_norm": f"{_ATTENTION}q_norm",
    "attention.key_norm": f"{_ATTENTION}k_norm",
    "attention.out": f"{_ATTENTION}o_proj",
    "feed_forward_norm": "model.layers.{layer}.post_attention_layernorm",
    "feed_forward.gate_up": f"{_INNER}gate_proj {_INNER}up_proj",
    "feed_forward.up": f"{_INNER}c_fc",
    "feed_forward.down": f"{_INNER}down_proj",
}
STARCODER2 = LLAMA | {"feed_forward.down": f"{_INNER}c_proj"}

GEMMA2 = LLAMA | {
    "attention_output_norm": LLAMA["feed_forward_norm"],  # where Llama has the one behind it
    "feed_forward_norm": "model.layers.{layer}.pre_feedforward_layernorm",
    "feed_forward_output_norm": "model.layers.{layer}.post_feedforward_layernorm",
}

GROUPED = dict(kv_heads=2, ffn_width=96)
THEIR_GROUPED = dict(
    hidden_size=48, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, head_dim=12,
)  # fmt: skip


def scaled(kind: str, **more: float) -> tuple[dict, dict]:
    """Settings of ours, and theirs, for positions beyond an original length of 16."""
    theirs = {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0} | more
    ours = {"kind": kind, "factor": 4.0}
    if kind != "linear":
        theirs["original_max_position_embeddings"] = ours["original_positions"] = 16
    return GROUPED | {"rope_theta": 500.0, "rope_scaling": ours}, {"rope_parameters": theirs}


CASES = {
    "gpt2": (
        dict(positions="learned", norm="layernorm", activation="gelu", bias=True,
             tied_embeddings=True),
        "GPT2", dict(n_positions=64, n_embd=48, n_layer=LAYERS, n_head=4), GPT2,
    ),
    "llama": (GROUPED | {"tied_embeddings": True}, "Llama", {"tie_word_embeddings": True}, LLAMA),
    "llama with biases": (
        GROUPED | {"bias": True}, "Llama", {"attention_bias": True, "mlp_bias": True}, LLAMA
    ),
    "linear": (scaled("linear")[0], "Llama", scaled("linear")[1], LLAMA),
    "llama3": (
        scaled("llama3")[0], "Llama",
        scaled("llama3", low_freq_factor=1.0, high_freq_factor=4.0)[1], LLAMA,
    ),
    "yarn": (scaled("yarn")[0], "Llama", scaled("yarn")[1], LLAMA),
    "qwen2": (GROUPED | {"qkv_bias": True}, "Qwen2", {}, LLAMA),
    "qwen3": (GROUPED | {"qk_norm": True}, "Qwen3", {}, LLAMA),
    "starcoder2": (
        GROUPED | dict(norm="layernorm", activation="gelu", bias=True, sliding_windows=[9]),
        "Starcoder2",
        dict(norm_epsilon=1e-5, hidden_act="gelu_pytorch_tanh", use_bias=True, sliding_window=9,
             residual_dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0),
        STARCODER2,
    ),
    "gemma2": (
        GROUPED | dict(activation="geglu", sliding_windows=[9, 0], tied_embeddings=True,
                       output_norms=True, scaled_embeddings=True, attention_width=20,
                       attention_softcap=5.0, logit_softcap=3.0),
        "Gemma2",
        dict(sliding_window=9, query_pre_attn_scalar=20, attn_logit_softcapping=5.0,
             final_logit_softcapping=3.0, tie_word_embeddings=True,
             layer_types=["sliding_attention", "full_attention", "sliding_attention"],
             hidden_activation="gelu_pytorch_tanh", pad_token_id=None),
        GEMMA2,
    ),
}  # fmt: skip


def build_theirs(kind: str, settings: Mapping) -> torch.nn.Module:
    common = dict(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0)
    if kind != "GPT2":
        common |= THEIR_GROUPED | {"tie_word_embeddings": False}
    config = getattr(transformers, f"{kind}Config")(**common | settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")
    return model(config).eval()


def as_ours(names: list[str], theirs: Mapping[str, Tensor], modules: Mapping[str, str]):
    """Their weights, or gradients, by our names."""
    for name in names:
        module, _, leaf = name.rpartition(".")
        layer = ""
        if module.startswith("blocks."):
            _, layer, module = module.split(".", 2)
        sources = modules[module].format(layer=layer).split()
        value = torch.cat([theirs[f"{source}.{leaf}"] for source in sources])
        # GPT-2's Conv1D is a transposed Linear.
        yield name, value.T if ".h." in sources[0] and value.ndim == 2 else value


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients_are_those_of_transformers(case):
    settings, kind, their_settings, modules = CASES[case]
    theirs = build_theirs(kind, their_settings)
    for name, parameter in theirs.named_parameters():
        # Norms around 1: around 0 the gradients are too ill-conditioned to compare.
        is_scale = parameter.ndim == 1 and name.endswith("weight") and kind != "Gemma2"
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.1)
    config = DecoderConfig(**{"layers": LAYERS, "width": 48, "heads": 4} | settings)
    model = build_model(config, SIZES).eval()
    names = [name for name, _ in model.named_parameters()]
    weights = {name: value.detach() for name, value in theirs.named_parameters()}
    if kind == "Gemma2":  # whose norms multiply by 1 + weight
        weights |= {name: 1 + value for name, value in weights.items() if value.ndim == 1}
    model.load_state_dict(dict(as_ours(names, weights, modules)), strict=False)

    ids_BT = torch.randint(0, VOCAB, (2, LENGTH))
    output = theirs(ids_BT, labels=ids_BT)
    output.loss.backward()
    starts, lengths = torch.tensor([0, LENGTH]), torch.tensor([LENGTH, LENGTH])
    scoring = build_causal_scoring(model, CausalConfig(), mask_documents=False)
    loss = scoring(tokens=ids_BT, starts=starts, lengths=lengths).loss
    (loss.total / loss.targets).backward()

    layout = model.lay_out(torch.zeros_like(ids_BT, dtype=torch.bool), mask_documents=False)
    close(model.head(model(ids_BT, layout)), output.logits)
    close(loss.total / loss.targets, output.loss)
    gradients = {name: value.grad for name, value in theirs.named_parameters()}
    assert len(names) == len(dict(as_ours(names, gradients, modules)))
    for name, expected in as_ours(names, gradients, modules):
        close(model.get_parameter(name).grad, expected)


def close(ours: Tensor, theirs: Tensor) -> None:
    """By the norm of the difference: some elements are sums that cancel."""
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
