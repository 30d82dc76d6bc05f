"""The recurrent family is torch's cells over every document by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmscale.config.model import RecurrentConfig, Sizes
from lmscale.config.objective import CausalConfig
from lmscale.model.family import account_model, build_model
from lmscale.model.initialize import declared_parameters
from lmscale.model.recurrent import CELLS, warn_of_old_cudnn
from lmscale.objective.causal_scoring import build_causal_scoring
from lmscale.train.initial import draw_weights, fill_weights

VOCAB, LENGTH = 31, 13
STARTS = [0, 5, 6, LENGTH, LENGTH + 4]  # flat, of two rows


def build(cell: str, **switches):
    config = RecurrentConfig(**{"cell": cell, "layers": 2, "width": 8} | switches)
    model = build_model(
        config, Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=LENGTH - 1)
    )
    fill_weights(model, draw_weights(1))
    return model


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_loss_and_gradients_are_those_of_torch_s_cells_over_each_document_alone(cell, masked):
    model = build(cell)
    embedding, cells = nn.Embedding(VOCAB, 8), CELLS[cell](8, 8, num_layers=2)
    head = nn.Linear(8, VOCAB, bias=False)
    theirs = nn.ModuleDict({"embedding": embedding, "cells": cells, "head": head})
    theirs.load_state_dict(model.state_dict())

    tokens = torch.randint(0, VOCAB, (2, LENGTH))
    scoring = build_causal_scoring(model, CausalConfig(), mask_documents=masked)
    lengths = torch.tensor([LENGTH, LENGTH])
    loss = scoring(tokens=tokens, starts=torch.tensor(STARTS), lengths=lengths).loss
    starts = STARTS if masked else [0, LENGTH]
    total, targets = torch.zeros(()), 0
    for start, end in zip(starts, [*starts[1:], 2 * LENGTH], strict=True):
        document = tokens.flatten()[start:end]
        if len(document) > 1:
            hidden, _ = cells(embedding(document[:-1])[:, None])
            total = total + F.cross_entropy(head(hidden[:, 0]), document[1:], reduction="sum")
            targets += len(document) - 1
    assert loss.targets == targets
    torch.testing.assert_close(loss.total, total)
    loss.total.backward()
    total.backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize("pieces", [[12], [5] + [1] * 7, [4, 3, 5]])
@pytest.mark.parametrize("cell", CELLS)
def test_generation_goes_on_from_its_state(cell, pieces):
    model = build(cell, dropout=0.5).eval()
    ids_BT = torch.randint(0, VOCAB, (2, 12))
    state = model.build_state(batch=2, capacity=12)
    with torch.no_grad():
        outputs = [model.extend(piece_BT, state) for piece_BT in ids_BT.split(pieces, dim=1)]
        layout = model.lay_out(torch.zeros_like(ids_BT, dtype=torch.bool), mask_documents=False)
        torch.testing.assert_close(torch.cat(outputs, 1), model(ids_BT, layout))


@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_acts_in_training_only(layers):
    model = build("lstm", dropout=0.5, layers=layers)
    ids_BT = torch.randint(0, VOCAB, (1, 8))
    layout = model.lay_out(torch.zeros_like(ids_BT, dtype=torch.bool), mask_documents=False)
    assert not torch.equal(model(ids_BT, layout), model(ids_BT, layout))
    assert torch.equal(model.eval()(ids_BT, layout), model(ids_BT, layout))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_the_account_is_the_model_s_and_muon_gets_every_gate_s_matrix(cell, tied):
    model = build(cell, tied_embeddings=tied)
    cost = account_model(model.config, Sizes(vocab_size=VOCAB, max_positions=4, sequence_length=4))
    assert cost.total == sum(parameter.numel() for parameter in model.parameters())
    declared = declared_parameters(model)
    for name, parameter in model.cells.named_parameters():
        what = declared[f"cells.{name}"]
        assert what.kind == ("linear" if parameter.ndim == 2 else "bias")
        assert parameter.ndim == 1 or (set(what.parts), sum(what.parts)) == ({8}, len(parameter))


@pytest.mark.parametrize("cell", CELLS)
def test_hidden_states_keep_the_weights_dtype(cell):
    model = build(cell).to(torch.bfloat16)
    ids_BT = torch.randint(0, VOCAB, (2, 8))
    layout = model.lay_out(torch.zeros_like(ids_BT, dtype=torch.bool), mask_documents=False)
    hidden_BTD = model(ids_BT, layout)
    assert hidden_BTD.dtype == torch.bfloat16
    assert hidden_BTD.isfinite().all()


def test_a_cudnn_without_cells_in_bf16_is_told_once(caplog):
    for version in (91300, 91002, 91002):
        warn_of_old_cudnn(version)
    (record,) = caplog.records
    assert "cuDNN (91002) has no recurrent cells in bf16" in record.getMessage()
