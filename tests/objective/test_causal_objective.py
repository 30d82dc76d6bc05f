"""What is predicted: the next token of the same document, and nothing else."""

from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmscale.config.model import DecoderConfig, Sizes
from lmscale.config.objective import CausalConfig
from lmscale.model.family import build_model
from lmscale.model.layout import build_layout
from lmscale.objective.causal_scoring import build_causal_scoring
from lmscale.objective.scores import LossSum, Scores, ScoreSums, Scoring
from lmscale.train.initial import draw_weights, fill_weights

VOCAB = 37


def build(*, mask_documents: bool = True, z_loss: float = 0.0, **switches) -> Scoring:
    config = DecoderConfig(layers=2, width=32, heads=4, init_std=0.3, **switches)
    model = build_model(config, Sizes(vocab_size=VOCAB, max_positions=16, sequence_length=16))
    fill_weights(model, draw_weights(1))
    settings = CausalConfig(chunk_tokens=5, z_loss=z_loss)
    return build_causal_scoring(model, settings, mask_documents=mask_documents)


def batch(*rows: list[list[int]], width: int = 9):
    """Rows of documents → tokens [B, width], flat starts, lengths; 3 is the padding id."""
    tokens, starts, lengths = [], [], []
    for row, documents in enumerate(rows):
        flat = [token for document in documents for token in document]
        edges = [sum(map(len, documents[:n])) for n in range(len(documents))]
        starts += [row * width + edge for edge in edges]
        lengths.append(len(flat))
        tokens.append(flat + [3] * (width - len(flat)))
    return (
        torch.tensor(tokens),
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32),
    )


def score(objective: Scoring, tokens, starts, lengths) -> Scores:
    return objective(tokens=tokens, starts=starts, lengths=lengths)


ROWS = ([[5, 6, 7, 2], [8, 9, 2]], [[10, 11, 12, 13, 14, 15, 16, 17, 2]])


def test_the_loss_of_each_row_is_told_apart():
    objective = build(z_loss=0.1)  # which is no part of the figure
    rows = score(objective, *batch(*ROWS)).rows
    assert rows is not None and not rows.total.requires_grad
    alone = [score(objective, *batch(row)).figures["loss"] for row in ROWS]
    torch.testing.assert_close(rows.total, torch.stack([each.total for each in alone]).detach())
    assert rows.targets.tolist() == [each.targets for each in alone]


def test_sums_of_rows_are_those_of_each_source_and_of_a_single_one_there_are_none():
    mixture = MagicMock(names=("a", "b", "gone"))  # none of whose samples comes any more
    mixture.locate = lambda first, count: (np.arange(first, first + count) % 2, None)
    for names, kept in ((mixture.names, True), (("a",), False)):
        mixture.names = names
        sums = ScoreSums(("loss",), torch.device("cpu"), mixture)
        for first_n in (0, 3):
            rows = LossSum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 5]))
            loss = LossSum(rows.total.sum(), rows.targets.sum())
            sums.add(Scores(loss=loss, figures={"loss": loss}, rows=rows), first_n)
        figures, counts = sums.means(sums.values.tolist())
        of_source = {"source_loss/a": 7 / 6, "source_loss/b": 7 / 6} if kept else {}
        assert figures == {"loss": 14 / 12, **of_source}
        assert counts == {"loss": 12, **dict.fromkeys(of_source, 6)}


def test_the_loss_is_the_sum_over_each_document_alone():
    objective = build()
    output = score(objective, *batch(*ROWS))
    alone = [
        score(objective, *batch([doc], width=len(doc))).figures["loss"]
        for row in ROWS
        for doc in row
    ]
    assert output.figures["loss"].targets.item() == 3 + 2 + 8
    total = sum(alone[1:], start=alone[0])
    assert total.targets.item() == 13
    torch.testing.assert_close(output.figures["loss"].total, total.total)


def test_without_document_masks_every_token_but_padding_is_a_target():
    objective = build(mask_documents=False)
    tokens, starts, lengths = batch(*ROWS)
    output = score(objective, tokens, starts, lengths)
    assert output.figures["loss"].targets.item() == 6 + 8
    no_starts = torch.tensor([0, 9], dtype=torch.int32)
    torch.testing.assert_close(
        score(objective, tokens, no_starts, lengths).figures["loss"].total,
        output.figures["loss"].total,
    )


def test_padding_changes_nothing():
    objective = build()
    tokens, starts, lengths = batch(*ROWS)
    padded = tokens.clone()
    padded[0, 7:] = 30
    torch.testing.assert_close(
        score(objective, padded, starts, lengths).loss.total,
        score(objective, tokens, starts, lengths).loss.total,
    )


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.int64])
def test_tokens_may_come_in_the_loader_s_dtypes(dtype):
    objective = build()
    tokens, starts, lengths = batch(*ROWS)
    expected = score(objective, tokens, starts, lengths).loss.total
    assert torch.equal(score(objective, tokens.to(dtype), starts, lengths).loss.total, expected)


@pytest.mark.parametrize("length", [0, 1])
def test_a_window_without_targets_adds_nothing(length):
    objective = build()
    tokens, starts, lengths = batch(*ROWS)
    lengths[0] = length
    output = score(objective, tokens, starts, lengths)
    output.loss.total.backward()
    assert output.figures["loss"].targets.item() == 8
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_whole_gradient_is_that_of_plain_cross_entropy(is_tied):
    objective = build(mask_documents=False, tied_embeddings=is_tied, kv_heads=2)
    tokens, starts, lengths = batch(*ROWS)
    lengths.fill_(9)
    score(objective, tokens, starts, lengths).loss.total.backward()
    actual = {name: p.grad.clone() for name, p in objective.named_parameters()}
    objective.zero_grad()
    begins_BT = torch.zeros(2, 8, dtype=torch.bool)
    layout = build_layout(begins_BT, "causal")
    logits = objective.model.head(objective.model(tokens[:, :-1], layout))
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").backward()
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_z_loss_is_trained_but_reported_apart():
    tokens, starts, lengths = batch(*ROWS)
    without = score(build(), tokens, starts, lengths)
    with_z = score(build(z_loss=0.01), tokens, starts, lengths)
    nll, z = (with_z.figures[name].total for name in ("loss", "z_loss"))
    torch.testing.assert_close(nll, without.figures["loss"].total)
    assert without.figures["z_loss"].total.item() == 0 and z.item() > 0
    torch.testing.assert_close(with_z.loss.total, nll + z)


def test_sums_add_and_do_not_concatenate():
    total = LossSum(torch.tensor(1.5), torch.tensor(2)) + LossSum(
        torch.tensor(2.0), torch.tensor(3)
    )
    assert (total.total.item(), total.targets.item()) == (3.5, 5)


def test_the_model_s_parameters_are_named_after_it():
    objective = build()
    names = {name for name, _ in objective.named_parameters()}
    assert names == {f"model.{name}" for name, _ in objective.model.named_parameters()}


def test_sums_of_figures_are_added_by_name_and_one_that_is_missing_is_told():
    scores = score(build(), *batch(*ROWS))
    sums = ScoreSums(("z_loss", "loss"), torch.device("cpu"))
    sums.add(scores)
    sums.add(scores)
    figures, counts = sums.means(sums.values.tolist())
    nll = scores.figures["loss"]
    assert list(figures) == ["z_loss", "loss"] and counts == {"z_loss": 26, "loss": 26}
    assert figures["loss"] == pytest.approx((nll.total / nll.targets).item())
    with pytest.raises(ValueError, match=r"lists the figures \['accuracy'\], but its scoring"):
        ScoreSums(("accuracy",), torch.device("cpu")).add(scores)


def test_a_figure_that_counted_nothing_in_a_step_is_left_out():
    sums = ScoreSums(("loss", "accuracy"), torch.device("cpu"))
    assert sums.means([6.0, 3.0, 0.0, 0.0]) == ({"loss": 2.0}, {"loss": 3.0})
