"""When two models are the same, on which tokens that is asked, and what the card says of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from handmade_runs import STEP, make_run
from tiny_run import tiny_config

from lmscale.errors import DataError
from lmscale.evaluation.found import find_run
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.parity import Answers, compare, largest_difference, our_outputs
from lmscale.exchange.samples import draw_samples, longest_sample, random_samples
from lmscale.stream.ledger import LedgerRow
from lmscale.stream.mixture import Segment
from lmscale.stream.stream import StreamState
from lmscale.tokenizer.codec import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_data: Path):
    return load_tokenizer(tiny_data / "tokenizer")


def test_a_model_that_is_wrong_by_a_ten_thousandth_is_another(tiny_data, tokenizer, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "run")
    model = make_run(config, tokenizer)
    samples = random_samples(config.num_ids, 16)
    with torch.no_grad():
        ours = [our_outputs(model, each, "tokens") for each in samples.questions()]

    def judge(factor: float):
        outputs = tuple(tuple(each * factor for each in sample) for sample in ours)
        return compare(model, samples, Answers(outputs=outputs, written=()), head="tokens")

    assert judge(1 + 1e-6).error < 2e-6
    with pytest.raises(DataError, match="the logits of 8 of 8 samples"):
        judge(1 + 1e-4)


def test_zeros_are_what_zeros_are_and_nothing_else_is():
    zeros, small = (torch.zeros(3, 5),), (torch.full((3, 5), 1e-6),)
    assert largest_difference([zeros], [zeros]) == 0
    assert not largest_difference([small], [zeros]) <= 1e-5
    assert not largest_difference([(torch.full((3, 5), torch.nan),)], [zeros]) <= 1e-5


def test_samples_are_of_the_run_s_own_tokenizer_and_the_first_is_as_long_as_the_model_sees(
    tiny_data, tokenizer, tmp_path
):
    config = tiny_config(tiny_data, tmp_path / "run")
    found = draw_samples(config, tokenizer.fingerprint)
    assert found.origin == "training set a"
    assert len(found.rows[0]) == longest_sample(config) == config.max_positions
    assert draw_samples(config, "of another tokenizer").origin == "random ids"


def test_the_card_says_what_was_read_and_measured_up_to_this_step(tiny_data, tokenizer, tmp_path):
    """84 samples: of the first 40 all are of a, of the others one in four."""
    config = tiny_config(tiny_data, tmp_path / "run")
    segments = (
        Segment(start=0, quotas={"a": 4}, base={"a": 0}, fingerprints={"a": "of a"}),
        Segment(
            start=40,
            quotas={"a": 1, "b": 3},
            base={"a": 40, "b": 0},
            fingerprints={"b": "of b"},
        ),
    )
    stream = StreamState(seed=0, n=84, geometry={}, segments=segments)
    make_run(config, tokenizer, state={"stream": stream.to_json()})
    rows = [
        LedgerRow(step=step, first_n=12 * step, samples=12, tokens=9, digest=1 << 4 * step)
        for step in range(STEP + 2)
    ]
    (config.folder / "ledger.jsonl").write_text("".join(row.to_line() for row in rows))
    figures = [(STEP - 1, "early", 3.0), (STEP, "heldout", 2.5), (STEP + 1, "late", 2.0)]
    lines = [
        json.dumps({"step": step, f"evaluation/{name}/loss": value, "time": 1.0})
        for step, name, value in figures
    ]
    (config.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert find_run(config.folder, step=None).manifest.step == STEP
    export_run(ExportRequest(folder=config.folder, out=tmp_path / "out", verify="tensors"))
    card = (tmp_path / "out/README.md").read_text()
    assert "84 windows" in card and "2,600 tokens trained on" in card
    assert "| a | 60.7% | `of a` |" in card and "| b | 39.3% | `of b` |" in card
    assert f"in the run's ledger: `{0x1111111:016x}`" in card
    assert "| heldout | 2.5000 |" in card and "early" not in card and "late" not in card
