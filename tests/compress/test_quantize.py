"""``lmscale quantize``: what a file of 8 or 4 bits weighs, how far its weights are off, and that
the table's loss is that of these weights.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
from handmade_runs import make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_run import tiny_config
from typer.testing import CliRunner

from lmscale.cli.app import app
from lmscale.cli.main import main
from lmscale.compress import measure
from lmscale.config import RunConfig
from lmscale.evaluation.found import find_run
from lmscale.exchange.gguf_read import read_gguf
from lmscale.tokenizer.codec import load_tokenizer

BLOCKS = {"Q8_0": (127, 34), "Q4_0": (8, 18)}  # largest whole number; bytes of 32 weights


# Of blocks of nothing but numbers near fp32's smallest the gguf package warns that it divides by 0.
WEIGHTS = st.floats(-(2.0**10), 2.0**10, width=32).map(lambda x: x if abs(x) > 2.0**-30 else 0.0)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (3, 64), elements=WEIGHTS),
    st.sampled_from(sorted(BLOCKS)),
)
def test_a_weight_is_off_by_half_a_step_of_its_block_at_most(values, name):
    kind = gguf.GGMLQuantizationType[name]
    stored = gguf.quants.quantize(values, kind)
    largest, block_bytes = BLOCKS[name]
    assert stored.nbytes == values.size // 32 * block_bytes
    back = gguf.quants.dequantize(stored, kind).reshape(-1, 32)
    blocks = values.reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / largest
    # The factor is fp16, with 2^-11 of itself or, of the smallest, 2^-25 to lose, times the whole
    # number; of -8 to 7 a weight as large as the largest, of the other sign, loses a whole step.
    most = 0.5 if name == "Q8_0" else 1.0
    allowed = step * (most + largest * 2.0**-11) + largest * 2.0**-25
    assert (np.abs(back - blocks) <= allowed * 1.001).all()


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory) -> RunConfig:
    sets = {"evaluation.sets": {"heldout": str(tiny_data / "shards/a/heldout")}}
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("quantize") / "run", sets)
    make_run(config, load_tokenizer(tiny_data / "tokenizer"))
    return config


def invoke(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_has_the_size_and_the_loss_of_what_is_in_the_file(run, tmp_path, monkeypatch):
    quick = partial(measure.take_turns, rounds=1, piece_seconds=0)
    monkeypatch.setattr(measure, "take_turns", quick)
    out = tmp_path / "small.gguf"
    words = ("quantize", run.folder, "--out", out, "--bits", 4, "--max-windows", 4, "--json")
    said = json.loads(invoke(*words))
    assert said["verified"]["tokens"] > 30 and said["dtype"] == "q4_0"
    own, before, after = said["models"]
    assert (own["engine"], before["engine"], after["engine"]) == ("torch", *["llama.cpp"] * 2)
    model = read_gguf(find_run(run.folder, step=None), out).model
    sizes = dict.fromkeys(("vector", "embedding", "matrix"), 0)
    for name, parameter in model.named_parameters():
        is_block = name.startswith("blocks.")
        kind = "vector" if parameter.dim() == 1 else "matrix" if is_block else "embedding"
        sizes[kind] += parameter.numel()
    expected = 4 * sizes["vector"] + 2 * sizes["embedding"] + sizes["matrix"] // 32 * 18
    assert after["bytes"] == expected and before["bytes"] == own["bytes"] == 4 * sum(sizes.values())
    losses = [row["sets"]["heldout"]["loss"] for row in said["models"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # fp32's rounding in another order
    assert abs(losses[2] - losses[0]) > 1e-4
    assert all(row["generating_tokens_per_second"] > 0 for row in said["models"])
    both = json.loads(invoke("compare", run.folder, out, "--max-windows", 4, "--json"))
    assert both[1]["sets"] == after["sets"] and both[1]["bytes"] == after["bytes"]
    assert not [path for path in tmp_path.iterdir() if path != out]


def test_a_file_of_another_run_is_not_compared(run, tiny_data, tmp_path, capsys):
    sets = {"evaluation.sets": {"heldout": str(tiny_data / "shards/a/heldout")}}
    other = tiny_config(tiny_data, tmp_path / "other", {**sets, "run.name": "other"})
    make_run(other, load_tokenizer(tiny_data / "tokenizer"))
    out = tmp_path / "other.gguf"
    words = ("export", other.folder, "--format", "gguf", "--out", out, "--verify", "tensors")
    invoke(*words)
    assert main(["compare", str(run.folder), str(out)]) == 2
    assert "made of another checkpoint than" in capsys.readouterr().err
    out.write_bytes(b"no file of llama.cpp's")
    assert main(["compare", str(run.folder), str(out)]) == 2
    assert "is no GGUF file that can be read" in capsys.readouterr().err
