"""The encoder's switches make BERT, RoBERTa and ModernBERT: logits, loss and every gradient are
those of Hugging Face's models with the same random weights.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from their_encoders import (
    BERT,
    LAYERS,
    LENGTH,
    MODERNBERT,
    PAD,
    ROBERTA,
    VOCAB,
    as_ours,
    build_theirs,
    difference,
)

from lmscale.config.model import EncoderConfig, Sizes
from lmscale.config.objective import MaskedConfig
from lmscale.model.family import build_model
from lmscale.objective.masked_scoring import build_masked_scoring

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
