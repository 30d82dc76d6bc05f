"""The step benchmark runs, compares equal arithmetic, and computes its ratios within rounds."""

from __future__ import annotations

import re
import sys

import pytest
import step
from step import Timing, ratio
from synthetic import SHAPES, build_config, random_steps

from lmscale.config import plan_batches
from lmscale.model.family import account_model


def test_lmscale_and_the_bare_loop_have_the_same_losses(run_script):
    small = ("--shape", "tiny", "--rounds", "1", "--steps", "1", "--device", "cpu")
    setting = ("--precision", "fp32", "--zero-stage", "2")
    printed = run_script(sys.executable, "benchmarks/step.py", *small, *setting)
    assert re.search(r"^lmscale +\d", printed, re.M)
    assert re.search(r"^bare torch loop +\d.* \d\.\d{3}$", printed, re.M)
    difference = re.search(r"difference from the bare loop's loss in 3 steps: (\S+)", printed)
    assert difference is not None and float(difference[1]) < 1e-6  # fp32, 3 steps


def test_a_configuration_is_measured_in_its_own_precision(monkeypatch, tmp_path):
    path, measured = tmp_path / "a.yaml", []
    monkeypatch.setattr(step, "run", lambda config, *_, **__: measured.append(config))
    monkeypatch.setattr(step, "product_rates", dict)
    monkeypatch.setattr(step, "faster_precision", lambda rates: "fp32")
    path.write_text("run: {name: a}\nengine: {precision: bf16}\n")
    step.main(["--config", str(path), "--device", "cpu"])
    step.main(["--shape", "tiny", "--device", "cpu"])
    assert [config.engine.precision for config in measured] == ["bf16", "fp32"]


def test_a_ratio_is_taken_within_each_round():
    # The machine slows down to a tenth in the second round: medians of each alone would hide it.
    ours = Timing(seconds=(2.0, 20.0, 2.2), losses=())
    theirs = Timing(seconds=(1.0, 10.0, 1.1), losses=())
    assert ratio(ours, theirs) == pytest.approx(0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_a_configuration_with_batches(shape):
    config = build_config(shape)
    plan = plan_batches(
        global_windows=config.batch.micro_windows,
        micro_windows=config.batch.micro_windows,
        data_ranks=1,
    )
    micro = next(random_steps(config, plan)).micro_batches[0]
    tokens = micro.arrays["tokens"]
    assert tokens.shape == (plan.micro_windows, config.stream.sequence_length + 1)
    assert tokens.max() < config.vocab_size
    assert 0 < micro.targets < tokens.size


@pytest.mark.parametrize(("shape", "millions"), [("gpt2_124m", 124), ("llama_1b", 1345)])
def test_the_shapes_are_as_large_as_their_names(shape, millions):
    config = build_config(shape)
    count = account_model(config.model, config.sizes).total
    assert round(count / 1e6) == millions
