"""An encoder learns to fill in, on changing ranks and stages, and the audit counts what it did."""

from __future__ import annotations

import json

import pytest
from tiny_run import launch, run_lmscale, write_tiny_config

from lmscale.files.jsonl import read_rows

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
MODEL = {
    "family": "encoder", "layers": 2, "width": 48, "heads": 4, "positions": "rope",
    "norm_first": True, "bias": False, "activation": "geglu", "ffn_width": 96,
}  # fmt: skip


def read_lmscale(*arguments) -> dict:
    said = run_lmscale(*arguments, "--json").output
    return json.loads(said[said.index("{") :])


def test_a_masked_run_beats_the_unigram_and_is_audited(tiny_data, tmp_path):
    seen, unseen = tiny_data / "shards/a/train", tiny_data / "shards/b/train"
    run = tmp_path / "run"
    config = write_tiny_config(
        tmp_path / "config.yaml", tiny_data, run,
        {
            "stream.sources": {"a": {"shards": str(seen)}}, "stream.sequence_length": 64,
            "batch": {"global_windows": 16, "micro_windows": 16}, "model": MODEL,
            "objective": {"name": "masked", "rate": 0.3}, "train.steps": 150,
            "engine.optimizer.lr": 8e-3, "checkpoint.every_steps": 75,
            "evaluation.sets": {"b": str(unseen)},
        },
    )  # fmt: skip
    sharded = {"engine.zero_stage": 3, "batch.micro_windows": 4}
    begun = launch(config, 2, {"train.steps": 4, "evaluation.at_end": False} | sharded)
    assert begun.code == 0, begun.output
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    rows = [row for row in read_rows(run / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 151))
    assert rows[-1]["train/accuracy"] > rows[0]["train/accuracy"]

    assert read_lmscale("runs", "audit", run)["is_clean"]
    score = read_lmscale("evaluate", run, "--baseline", "unigram")["b"]
    (final,) = [
        row["final/b/loss"] for row in read_rows(run / "metrics.jsonl") if "final/b/loss" in row
    ]
    assert final == score["loss"]  # the same tokens are hidden every time
    assert score["loss"] < score["unigram"] - 0.1
    assert 0.05 < score["accuracy"] < 1
