"""The switches make GPT-2 and Llama: hidden states equal those of Hugging Face's modules."""

from __future__ import annotations

import pytest
import torch

from lmscale.config.model import DecoderConfig, Sizes
from lmscale.model.family import build_model
from lmscale.model.layout import build_layout

transformers = pytest.importorskip("transformers")
LAYERS, VOCAB = 3, 101


def hidden_states(config: DecoderConfig, weights: dict, ids_BT: torch.Tensor) -> torch.Tensor:
    model = build_model(
        config, Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=64)
    ).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"head.weight"} and not unexpected
    begins_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    with torch.no_grad():
        return model(ids_BT, build_layout(begins_BT, "causal"))


def theirs(module, ids_BT: torch.Tensor) -> tuple[dict, torch.Tensor]:
    for parameter in module.parameters():  # larger than any initial value, so that nothing hides
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        return module.state_dict(), module.eval()(ids_BT).last_hidden_state


def test_gpt2():
    ids_BT = torch.randint(0, VOCAB, (2, 37))
    gpt2 = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=48, n_layer=LAYERS, n_head=4, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    state, expected_BTD = theirs(transformers.GPT2Model(gpt2), ids_BT)
    names = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    weights = {
        "embedding.weight": state["wte.weight"],
        "position_embedding.weight": state["wpe.weight"],
        "norm.weight": state["ln_f.weight"],
        "norm.bias": state["ln_f.bias"],
    }
    for layer in range(LAYERS):
        for mine, other in names.items():
            weight = state[f"h.{layer}.{other}.weight"]  # GPT-2's Conv1D is a transposed Linear
            weights[f"blocks.{layer}.{mine}.weight"] = weight.T if weight.ndim == 2 else weight
            weights[f"blocks.{layer}.{mine}.bias"] = state[f"h.{layer}.{other}.bias"]
    config = DecoderConfig(
        layers=LAYERS, width=48, heads=4, positions="learned", norm="layernorm",
        activation="gelu", bias=True, tied_embeddings=True,
    )  # fmt: skip
    torch.testing.assert_close(hidden_states(config, weights, ids_BT), expected_BTD)


def test_llama():
    ids_BT = torch.randint(0, VOCAB, (2, 37))
    llama = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
        max_position_embeddings=64,
    )  # fmt: skip
    state, expected_BTD = theirs(transformers.LlamaModel(llama), ids_BT)
    weights = {
        "embedding.weight": state["embed_tokens.weight"],
        "norm.weight": state["norm.weight"],
    }
    names = {
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.out": ("self_attn.o_proj",),
        "attention_norm": ("input_layernorm",),
        "feed_forward_norm": ("post_attention_layernorm",),
        "feed_forward.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "feed_forward.down": ("mlp.down_proj",),
    }
    for layer in range(LAYERS):
        for mine, others in names.items():
            parts = [state[f"layers.{layer}.{other}.weight"] for other in others]
            weights[f"blocks.{layer}.{mine}.weight"] = torch.cat(parts)
    config = DecoderConfig(layers=LAYERS, width=48, heads=4, kv_heads=2, ffn_width=96)
    torch.testing.assert_close(hidden_states(config, weights, ids_BT), expected_BTD)
