"""An automatic precision is settled when a run begins, and kept in its config.yaml."""

import logging

import pytest
import torch
from tiny_run import log_commit

from lmscale.config import dump_config, load_config
from lmscale.config.load import parse_config
from lmscale.ranks.precision import Fitting, with_precision
from lmscale.ranks.ranks import Ranks
from lmscale.train import precision as precision_module
from lmscale.train.precision import settle_precision

CPU = torch.device("cpu")


@pytest.fixture
def on(monkeypatch):
    """Have the devices fit a precision."""

    def fit(precision):
        fitting = Fitting(precision, "of their kind")
        monkeypatch.setattr(precision_module, "agree_precision", lambda device: fitting)

    return fit


def config_in(folder, precision="auto"):
    text = f"run: {{name: a, folder: {folder}}}\nengine: {{precision: {precision}}}"
    return parse_config(text)


def settled(config) -> str:
    return settle_precision(config, Ranks(), CPU).engine.precision


def test_a_new_run_takes_what_its_devices_compute_in_and_says_why(on, tmp_path, caplog):
    on("fp32")
    with caplog.at_level(logging.INFO):
        assert settled(config_in(tmp_path)) == "fp32"
    assert "engine.precision: auto is fp32: of their kind" in caplog.text


def test_a_run_goes_on_in_the_precision_it_began_in_on_any_machine(on, tmp_path):
    on("fp32")
    begun = with_precision(config_in(tmp_path), "bf16")
    (tmp_path / "config.yaml").write_text(dump_config(begun))
    assert settled(config_in(tmp_path)) == "fp32"  # without a checkpoint it begins anew
    log_commit(tmp_path, 20)
    assert settled(config_in(tmp_path)) == "bf16"
    (tmp_path / "config.yaml").write_text("run: {")
    assert settled(config_in(tmp_path)) == "fp32"


def test_a_precision_that_is_asked_for_is_not_changed(on, tmp_path):
    on("fp32")
    for precision in ("bf16", "fp16", "fp32"):
        config = config_in(tmp_path, precision)
        assert settle_precision(config, Ranks(), CPU) is config


def test_the_default_is_automatic_and_a_frozen_configuration_is_not(on, tmp_path):
    on("bf16")
    config = parse_config(f"run: {{name: a, folder: {tmp_path}}}")
    assert config.engine.precision == "auto"
    path = tmp_path / "frozen.yaml"
    path.write_text(dump_config(settle_precision(config, Ranks(), CPU)))
    assert load_config(path).engine.precision == "bf16"
