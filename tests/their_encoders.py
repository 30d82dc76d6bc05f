"""Encoders of transformers with random weights, and how their modules are called in ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from theirs import import_transformers
from torch import Tensor

transformers = import_transformers()
LAYERS, VOCAB, LENGTH, PAD = 4, 101, 24, 1
_BERT, _BLOCK = "bert.embeddings.", "bert.encoder.layer.{layer}."
# A module of ours → theirs, whose rows follow each other in it.
BERT = {
    "embedding": f"{_BERT}word_embeddings",
    "position_embedding": f"{_BERT}position_embeddings",
    "type_embedding": f"{_BERT}token_type_embeddings",
    "embedding_norm": f"{_BERT}LayerNorm",
    "head": "cls.predictions",
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "attention.qkv": " ".join(
        f"{_BLOCK}attention.self.{part}" for part in ("query", "key", "value")
    ),
    "attention.out": f"{_BLOCK}attention.output.dense",
    "attention_norm": f"{_BLOCK}attention.output.LayerNorm",
    "feed_forward.up": f"{_BLOCK}intermediate.dense",
    "feed_forward.down": f"{_BLOCK}output.dense",
    "feed_forward_norm": f"{_BLOCK}output.LayerNorm",
}
ROBERTA = {name: place.replace("bert.", "roberta.") for name, place in BERT.items()} | {
    "head": "lm_head", "head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm",
}  # fmt: skip
_LAYER = "model.layers.{layer}."
MODERNBERT = {
    "embedding": "model.embeddings.tok_embeddings",
    "embedding_norm": "model.embeddings.norm",
    "norm": "model.final_norm",
    "head": "decoder",
    "head.dense": "head.dense",
    "head.norm": "head.norm",
    "attention.qkv": f"{_LAYER}attn.Wqkv",
    "attention.out": f"{_LAYER}attn.Wo",
    "attention_norm": f"{_LAYER}attn_norm",
    "feed_forward.gate_up": f"{_LAYER}mlp.Wi",
    "feed_forward.down": f"{_LAYER}mlp.Wo",
    "feed_forward_norm": f"{_LAYER}mlp_norm",
}
THEIRS = dict(
    vocab_size=VOCAB, hidden_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
    intermediate_size=96, pad_token_id=PAD, bos_token_id=0, eos_token_id=2, cls_token_id=0,
    sep_token_id=2,
)  # fmt: skip


def build_theirs(kind: str, settings: Mapping, *, head: str = "MaskedLM") -> torch.nn.Module:
    config = getattr(transformers, f"{kind}Config")(**THEIRS | settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}For{head}")(config).eval()
    for name, parameter in model.named_parameters():
        # Norms around 1: around 0 the gradients are too ill-conditioned to compare.
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.1)
    return model


def as_ours(
    names: list[str], theirs: Mapping[str, Tensor], modules: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Their weights, or gradients, by our names."""
    for name in names:
        module, _, leaf = name.rpartition(".")
        layer = ""
        if module.startswith("blocks."):
            _, layer, module = module.split(".", 2)
        sources = [f"{source}.{leaf}" for source in modules[module].format(layer=layer).split()]
        value = torch.cat([theirs[source] for source in sources])
        # RoBERTa counts positions from that of padding, so that its first rows serve nothing.
        is_shifted = "roberta" in sources[0] and module == "position_embedding"
        yield name, value[PAD + 1 :] if is_shifted else value


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()
