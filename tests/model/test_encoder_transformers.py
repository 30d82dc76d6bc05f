"""The encoder's switches make BERT, RoBERTa and ModernBERT: logits, loss and every gradient are
those of Hugging Face's models with the same random weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from theirs import import_transformers
from torch import Tensor

from lmscale.config.model import EncoderConfig, Sizes
from lmscale.config.objective import MaskedConfig
from lmscale.model.family import build_model
from lmscale.objective.masked_scoring import build_masked_scoring

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
CASES = {
    "bert": ({"token_types": 2}, "Bert", {"max_position_embeddings": 64}, BERT),
    "bert with relu": (
        {"token_types": 2, "activation": "relu"}, "Bert",
        {"max_position_embeddings": 64, "hidden_act": "relu"}, BERT,
    ),
    "roberta": (
        {"token_types": 1, "norm_eps": 1e-5}, "Roberta",
        {"max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}, ROBERTA,
    ),
    "modernbert": (
        dict(positions="rope", rope_theta=160_000.0, sliding_windows=(0, 4, 4), norm_eps=1e-5,
             local_rope_theta=10_000.0, norm_first=True, activation="geglu_exact", bias=False),
        "ModernBert", dict(local_attention=6, global_attn_every_n_layers=3), MODERNBERT,
    ),
}  # fmt: skip


def build_theirs(kind: str, settings: Mapping) -> torch.nn.Module:
    config = getattr(transformers, f"{kind}Config")(**THEIRS | settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
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


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients_are_those_of_transformers(case):
    settings, kind, their_settings, modules = CASES[case]
    theirs = build_theirs(kind, their_settings)
    config = EncoderConfig(
        family="encoder", layers=LAYERS, width=48, heads=4,
        **{"norm_eps": 1e-12, "ffn_width": 96} | settings,
    )  # fmt: skip
    sizes = Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=LENGTH)
    model = build_model(config, sizes).eval()
    weights = {name: value.detach() for name, value in theirs.named_parameters()}
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict(dict(as_ours(names, weights, modules)), strict=False)

    ids_BT = torch.randint(3, VOCAB, (3, LENGTH))
    lengths_B = torch.tensor([LENGTH, 17, 5], dtype=torch.int32)
    seen_BT = torch.arange(LENGTH) < lengths_B[:, None]
    ids_BT[~seen_BT] = PAD
    is_target_BT = seen_BT & (torch.rand(3, LENGTH) < 0.3)
    labels_BT = torch.where(is_target_BT, torch.randint(3, VOCAB, (3, LENGTH)), -100)
    output = theirs(input_ids=ids_BT, attention_mask=seen_BT.long(), labels=labels_BT)
    output.loss.backward()

    scoring = build_masked_scoring(model, MaskedConfig(name="masked", chunk_tokens=7))
    arrays = {
        "ids": ids_BT.to(torch.uint32),
        "starts": torch.arange(3, dtype=torch.int32) * LENGTH,
        "lengths": lengths_B,
        "positions": torch.from_numpy(np.flatnonzero(is_target_BT.numpy()).astype(np.int32)),
        "labels": labels_BT[is_target_BT].int(),
    }
    scores = scoring(**arrays)
    loss = scores.loss.total / scores.loss.targets
    loss.backward()
    layout = model.lay_out(
        torch.zeros(3, LENGTH, dtype=torch.bool), mask_documents=True, lengths_B=lengths_B
    )
    logits_BTV = model.head(model(ids_BT, layout))
    assert difference(logits_BTV[seen_BT], output.logits[seen_BT]) < 1e-5
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-5)
    hits = (output.logits.argmax(-1) == labels_BT)[is_target_BT].sum()
    assert scores.figures["accuracy"].total == hits
    gradients = {name: value.grad for name, value in theirs.named_parameters()}
    ours = {name: value.grad for name, value in model.named_parameters()}
    for name, expected in as_ours(names, gradients, modules):
        if name.endswith("qkv.bias"):  # a key's bias moves no score: its true gradient is 0
            kept = [part for place, part in enumerate(expected.chunk(3)) if place != 1]
            ours[name], expected = (
                torch.cat([p for i, p in enumerate(ours[name].chunk(3)) if i != 1]), torch.cat(kept)
            )  # fmt: skip
        assert difference(ours[name], expected) < 1e-5, name


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()
