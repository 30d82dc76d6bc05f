"""The decoder's switches make GPT-2, Llama, Qwen and others: settings, logits, loss and every
gradient are those of Hugging Face's models, which read our random weights from files.
"""

from __future__ import annotations

import pytest
import torch
from theirs import compare_gradients, difference, draw_weights, import_transformers, open_theirs

from lmscale.config.hf.architecture import canonical
from lmscale.config.hf.choose import choose_architecture, read_section
from lmscale.config.model import DecoderConfig, Sizes
from lmscale.config.objective import CausalConfig
from lmscale.exchange.rules import find_left_out
from lmscale.model.family import build_model
from lmscale.objective.causal_scoring import build_causal_scoring

import_transformers()
LAYERS, VOCAB, LENGTH = 3, 101, 40
SIZES = Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=LENGTH)
GPT2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}
GROUPED = {"kv_heads": 2, "ffn_width": 96}


def scaled(kind: str, **more: float) -> dict:
    """Positions beyond an original length of 16."""
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
def test_settings_logits_loss_and_gradients_are_those_of_transformers(case, tmp_path):
    model_type, settings = CASES[case]
    section = DecoderConfig(layers=LAYERS, width=48, heads=4, **settings)
    architecture = choose_architecture(section, SIZES)
    assert architecture.model_type == model_type
    model = build_model(section, SIZES).eval()
    draw_weights(model)
    assert not find_left_out(architecture, model)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    theirs, rules = open_theirs(tmp_path, model, architecture, section, SIZES, **ids)
    assert canonical(read_section(theirs.config.to_dict(), "it")[1]) == canonical(section)

    ids_BT = torch.randint(0, VOCAB, (2, LENGTH))
    output = theirs(ids_BT, labels=ids_BT)
    output.loss.backward()
    starts, lengths = torch.tensor([0, LENGTH]), torch.tensor([LENGTH, LENGTH])
    scoring = build_causal_scoring(model, CausalConfig(), mask_documents=False)
    loss = scoring(tokens=ids_BT, starts=starts, lengths=lengths).loss
    (loss.total / loss.targets).backward()

    layout = model.lay_out(torch.zeros_like(ids_BT, dtype=torch.bool), mask_documents=False)
    assert difference(model.head(model(ids_BT, layout)), output.logits) < 1e-5
    assert difference(loss.total / loss.targets, output.loss) < 1e-5
    compare_gradients(model, theirs, rules)
