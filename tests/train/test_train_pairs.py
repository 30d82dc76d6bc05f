"""Encoder-decoders learn from the stream's windows through the engine, by objectives of pairs."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from rank_cases import Case, run_cases
from recipes import BART
from tiny_run import tiny_config

from lmscale.objective.objective import build_preparation
from lmscale.stream.stream import open_stream

pytestmark = [pytest.mark.ranks]

STEPS = 60
T5 = {
    "family": "encoder_decoder", "layers": 1, "width": 32, "heads": 4, "ffn_width": 64,
}  # fmt: skip
CASES = {
    "spans": {"model": T5, "objective": {"name": "spans"}},
    "denoisers": {
        "model": T5 | {"activation": "swiglu", "tied_embeddings": False},
        "objective": {"name": "denoisers"},
    },
    "infill": {"model": T5 | BART, "objective": {"name": "infill"}},
}


@pytest.fixture(scope="module")
def reports(tiny_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    cases = [
        Case(name=name, data=str(tiny_data), folder=str(root / name), overrides=overrides(name))
        for name in CASES
    ]
    return run_cases({1: cases}, root / "starts")


def overrides(name: str) -> dict:
    return CASES[name] | {
        "stream.mask_documents": False,
        "stream.sequence_length": 48,
        "batch.micro_windows": 12,
        "engine.zero_stage": 1,
        "engine.optimizer.lr": 1e-2,
        "train.steps": STEPS,
        "checkpoint.every_steps": STEPS,
    }


def unigram_loss(data: Path, folder: Path, name: str) -> tuple[float, list[int]]:
    """Nats a target of a guess that knows how often each label comes; each step's targets."""
    config = tiny_config(data, folder, overrides(name))
    preparation, windows = build_preparation(config), config.batch.global_windows
    counts: Counter[int] = Counter()
    targets = []
    with open_stream(config.stream, seed=config.run.seed, shape=config.window) as stream:
        for step in range(STEPS):
            arrays, number, _ = preparation.prepare(stream.read_rows(step * windows, windows))
            targets.append(number)
            counts.update(arrays["labels"][arrays["labels"] >= 0].tolist())
    shares = [count / counts.total() for count in counts.values()]
    return -sum(share * math.log(share) for share in shares), targets


@pytest.mark.parametrize("name", CASES)
def test_the_loss_falls_below_the_best_guess_without_context(reports, tiny_data, tmp_path, name):
    baseline, targets = unigram_loss(tiny_data, tmp_path, name)
    assert [report.targets for report in reports[name]] == targets
    last = sum(report.loss for report in reports[name][-10:]) / 10
    assert last < baseline - 0.1
