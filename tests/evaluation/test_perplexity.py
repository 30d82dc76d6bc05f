"""Held-out figures are exact sums over the targets, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import lmscale.evaluation.perplexity as perplexity
from lmscale.config.objective import CausalConfig
from lmscale.config.supervised import ClassesConfig, NumbersConfig
from lmscale.errors import DataError
from lmscale.evaluation.perplexity import EvaluationPlan, SetScore, evaluate_set, render_scores
from lmscale.model.layout import build_layout
from lmscale.objective.causal import CausalPreparation
from lmscale.objective.causal_scoring import build_causal_scoring
from lmscale.ranks.mesh import Axis
from lmscale.stream.batches import Rows
from lmscale.stream.dataset import Dataset

CPU = torch.device("cpu")
EOS = 2


@dataclass
class Window:
    """One sample."""

    tokens: np.ndarray
    starts: np.ndarray
    length: int


class Windows(Dataset):
    """Windows held in memory."""

    def __init__(self, windows: list[Window]):
        self.windows = windows

    @property
    def num_windows(self) -> int:
        return len(self.windows)

    def read(self, indices: Sequence[int], *, partners: bool = False) -> Rows:
        assert not partners
        windows = [self.windows[index] for index in indices]
        starts = [window.starts + 25 * row for row, window in enumerate(windows)]
        return Rows(
            numbers=np.array(indices),
            tokens=np.stack([window.tokens for window in windows]),
            lengths=np.array([window.length for window in windows], dtype=np.int32),
            starts=np.concatenate(starts).astype(np.int32),
            digests=np.zeros(len(windows), dtype=np.uint64),
        )


def cut(documents: list[np.ndarray], length: int) -> Windows:
    """Documents, each followed by eos, one after another in windows of ``length`` + 1 tokens."""
    flat = np.concatenate([np.append(doc, EOS) for doc in documents])
    edges = np.cumsum([0] + [len(doc) + 1 for doc in documents])
    windows = []
    for first in range(0, len(flat) - 1, length):
        part = flat[first : first + length + 1]
        inside = edges[(edges > first) & (edges < first + len(part))] - first
        windows.append(
            Window(
                tokens=np.append(part, [3] * (length + 1 - len(part))).astype(np.uint16),
                starts=np.append([0], inside).astype(np.int32),
                length=len(part),
            )
        )
    return Windows(windows)


@pytest.fixture
def documents(tokenizer):
    texts = [
        "Each rank takes its share. ",
        "天地玄黄，宇宙洪荒。",
        "x",
        "def f(x):\n    return x * 2\n" * 3,
    ]
    return [tokenizer.encode(text) for text in texts]


@pytest.fixture
def plan(tokenizer):
    return EvaluationPlan(
        micro_windows=2,
        preparation=CausalPreparation(mask_documents=True),
        token_bytes=tokenizer.token_bytes(),
        is_text=tokenizer.is_text(),
    )


@pytest.fixture
def objective(model):
    return build_causal_scoring(model, CausalConfig(chunk_tokens=16))


def test_the_sums_are_those_of_every_window_scored_alone(
    model, objective, documents, plan, tokenizer
):
    source = cut(documents, 24)
    score = evaluate_set(objective, source, plan, data=Axis(), device=CPU)
    nll, targets, covered = 0.0, 0, 0
    for window in source.windows:
        edges = [*window.starts.tolist(), window.length]
        for start, end in zip(edges, edges[1:], strict=False):
            ids = torch.from_numpy(window.tokens[start:end].astype(np.int64))[None]
            if ids.shape[1] < 2:
                continue
            begins = torch.zeros(1, ids.shape[1] - 1, dtype=torch.bool)
            layout = build_layout(begins, "causal")
            with torch.no_grad():
                logits = model.head(model(ids[:, :-1], layout))[0]
            nll += cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            targets += ids.shape[1] - 1
            covered += len(tokenizer.decode_bytes(ids[0, 1:].tolist()))
    assert (score.windows, score.targets, score.bytes) == (len(source.windows), targets, covered)
    assert score.nll == pytest.approx(nll, rel=1e-5)
    assert score.loss == pytest.approx(nll / targets, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nll / targets), rel=1e-4)
    assert score.bits_per_byte == pytest.approx(nll / math.log(2) / covered, rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_world_size_scores_every_window_once_in_equally_many_passes(
    objective, documents, plan, world_size, monkeypatch
):
    source = cut(documents, 24)
    whole = evaluate_set(objective, source, plan, data=Axis(), device=CPU)
    passes, sums = [], []
    # Each rank runs here in turn; what its all-reduce would add is collected instead.
    monkeypatch.setattr(perplexity, "sum_float64", lambda vector: sums.append(vector) or [1.0] * 3)
    for rank in range(world_size):
        count = 0

        class Counting(torch.nn.Module):
            def forward(self, **arrays):
                nonlocal count
                count += 1
                assert arrays["tokens"].shape == (2, 25)
                return objective(**arrays)

        axis = Axis(rank=rank, size=world_size)
        evaluate_set(Counting(), source, plan, data=axis, device=CPU)
        passes.append(count)
    assert len(set(passes)) == 1
    nll, targets, covered = np.sum(sums, axis=0)
    assert (targets, covered) == (whole.targets, whole.bytes)
    assert nll == pytest.approx(whole.nll, rel=1e-6)


def test_at_most_max_windows_are_scored_and_progress_adds_up(objective, documents, plan):
    steps = []
    score = evaluate_set(
        objective,
        cut(documents, 24),
        replace(plan, max_windows=3),
        data=Axis(),
        device=CPU,
        advance=steps.append,
    )
    assert score.windows == 3 and steps == [2, 1]


class Untouchable(Dataset):
    """A set whose windows nobody may read yet."""

    def __init__(self, num_windows):
        self.counts = np.array([num_windows])


@pytest.mark.parametrize(
    ("total", "limit", "numbers"),
    [
        (10, 3, [0, 3, 6]),
        (10, 4, [0, 2, 5, 7]),
        (3, 3, [0, 1, 2]),
        (3, 9, [0, 1, 2]),
        (3, None, [0, 1, 2]),
        (1_000_000_000_000, 2, [0, 500_000_000_000]),
    ],
)
def test_a_part_of_a_set_is_taken_evenly_from_all_of_it(plan, total, limit, numbers):
    plan = replace(plan, max_windows=limit)
    assert list(plan.window_numbers(Untouchable(total))) == numbers


def test_of_a_sorted_set_a_part_is_not_biased(objective, documents, plan):
    """As best_fit stores it: the full windows first, then the short ones."""
    full = cut(documents, 24).windows[0]
    short = replace(full, length=5, starts=full.starts[full.starts < 5])
    source = Windows([full] * 8 + [short] * 8)
    whole = evaluate_set(objective, source, plan, data=Axis(), device=CPU)
    part = evaluate_set(objective, source, replace(plan, max_windows=4), data=Axis(), device=CPU)
    assert part.targets * 4 == whole.targets
    assert part.loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_objective_s_mode_is_restored_and_no_gradient_is_kept(objective, documents, plan):
    objective.train()
    evaluate_set(objective, cut(documents, 24), plan, data=Axis(), device=CPU)
    assert objective.training and objective.model.training
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_an_empty_set_is_an_error_with_advice(objective, plan):
    with pytest.raises(DataError, match="holds no window"):
        evaluate_set(objective, Windows([]), plan, data=Axis(), device=CPU)


def test_a_set_of_single_tokens_has_no_target(objective, plan):
    empty = cut([np.array([], dtype=np.uint16)] * 4, 24)
    with pytest.raises(DataError, match="hold no target"):
        evaluate_set(objective, empty, plan, data=Axis(), device=CPU)


def test_a_hopeless_model_has_infinite_perplexity_not_an_error():
    score = SetScore(windows=1, targets=1, bytes=0, nll=1000.0)
    assert score.perplexity == math.inf
    assert math.isnan(score.bits_per_byte)
    assert score.to_dict()["perplexity"] is None and score.to_dict()["loss"] == 1000.0


def test_scores_render_as_an_aligned_table():
    score = SetScore(windows=12, targets=12_000, bytes=48_000, nll=24_000.0)
    assert render_scores({"docs": score, "news-long": score}) == (
        "set        windows  targets    loss  perplexity  bits/byte\n"
        "docs            12   12,000  2.0000        7.39     0.7213\n"
        "news-long       12   12,000  2.0000        7.39     0.7213"
    )


def test_a_table_has_the_columns_that_say_something_of_the_objective():
    sums = {"windows": 1, "targets": 2, "bytes": 0, "nll": 2000.0}
    of_classes = SetScore(**sums, others={"accuracy": 0.5}, measured=ClassesConfig.set_figures)
    assert list(of_classes.figures) == ["loss", "perplexity", "accuracy"]
    of_numbers = SetScore(**sums, others={"absolute_error": 3}, measured=NumbersConfig.set_figures)
    assert render_scores({"docs": of_numbers}) == (
        "set   windows  targets       loss  absolute_error\n"
        "docs        1        2  1000.0000          3.0000"
    )
    assert of_numbers.to_dict()["perplexity"] is of_numbers.to_dict()["bits_per_byte"] is None
    without_text = render_scores({"docs": SetScore(**sums)}).splitlines()[1]
    assert without_text.split() == ["docs", "1", "2", "1000.0000", "inf", "-"]
