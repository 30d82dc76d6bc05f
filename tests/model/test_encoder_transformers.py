"""The encoder's switches make BERT, RoBERTa and ModernBERT: settings, logits, loss and every
gradient are those of Hugging Face's models, which read our random weights from files.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from theirs import compare_gradients, difference, draw_weights, import_transformers, open_theirs

from lmscale.config.hf.architecture import canonical
from lmscale.config.hf.choose import ARCHITECTURES, choose_architecture, read_section
from lmscale.config.model import EncoderConfig, Sizes
from lmscale.config.objective import MaskedConfig
from lmscale.exchange.rules import find_left_out
from lmscale.model.family import build_model
from lmscale.objective.masked_scoring import build_masked_scoring

import_transformers()
LAYERS, VOCAB, LENGTH, PAD = 4, 101, 24, 1
SIZES = Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=LENGTH)
MODERN = {
    "positions": "rope", "rope_theta": 160_000.0, "local_rope_theta": 10_000.0, "norm_eps": 1e-5,
    "norm_first": True, "activation": "geglu_exact", "bias": False,
}  # fmt: skip
CASES = {
    "bert": ("bert", {"token_types": 2}),
    "bert with relu": ("bert", {"token_types": 2, "activation": "relu"}),
    "as roberta": ("bert", {"token_types": 1, "norm_eps": 1e-5}),
    "roberta": ("roberta", {"token_types": 1, "norm_eps": 1e-5}),
    "xlm-roberta": ("xlm-roberta", {"token_types": 1}),
    "modernbert": ("modernbert", MODERN | {"sliding_windows": (0, 4, 4)}),
    "modernbert, untied, with biases": (
        "modernbert",
        MODERN | {"bias": True, "tied_embeddings": False, "activation": "swiglu"}
        | {"sliding_windows": (2,)},
    ),
    "modernbert without windows": ("modernbert", MODERN),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_settings_logits_loss_and_gradients_are_those_of_transformers(case, tmp_path):
    model_type, settings = CASES[case]
    section = EncoderConfig.model_validate(
        {"family": "encoder", "layers": LAYERS, "width": 48, "heads": 4, "ffn_width": 96} | settings
    )
    architecture = ARCHITECTURES[model_type]
    assert not architecture.exports or choose_architecture(section, SIZES) is architecture
    model = build_model(section, SIZES).eval()
    draw_weights(model)
    assert not find_left_out(architecture, model)
    theirs, rules = open_theirs(tmp_path, model, architecture, section, SIZES, pad_token_id=PAD)
    read = read_section(theirs.config.to_dict(), "it")[1]
    assert canonical(read) == canonical(section)
    assert (read.vocab_size, read.max_positions) == (VOCAB, 64)

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
    compare_gradients(model, theirs, rules)
