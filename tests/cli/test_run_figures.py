"""Every figure of a run is shown with its unit."""

import pytest

from lmscale.cli.runs.figures import render_figure


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("train/loss", 3.29954, ("3.29954", "nats per label")),
        ("evaluation/heldout/loss", 3.5, ("3.5", "nats per label")),
        ("evaluation/heldout/bits_per_byte", 1.3, ("1.3", "bits/byte")),
        ("evaluation/heldout/perplexity", 29.9, ("29.9", "")),
        ("train/accuracy", 0.5, ("50", "%")),
        ("train/tokens", 1_227_553, ("1,227,553", "tokens")),
        ("train/learning_rate", 3e-4, ("0.0003", "")),
        ("speed/targets_per_second", 5076.0, ("5076", "tokens/s")),
        ("speed/positions_per_second", 5081.0, ("5081", "positions/s")),
        ("speed/mfu_dense", 0.4125, ("41.25", "%")),
        ("speed/peak_tflops", 989.0, ("989", "TFLOP/s")),
        ("speed/data_wait_fraction", 0.01, ("1", "%")),
        ("speed/goodput", 0.92, ("92", "%")),
        ("memory/peak_bytes", 407_000_000, ("407", "MB")),
        ("checkpoint/commit_seconds", 0.5, ("0.5", "s")),
        ("checkpoint/gigabytes_per_second", 2.5, ("2.5", "GB/s")),
        ("guard/jumped_samples", 24, ("24", "samples")),
        ("train/gradient_norm", None, ("-", "")),
    ],
)
def test_a_figure_is_shown_with_its_unit(name, value, shown):
    assert render_figure(name, value, "nats per label") == shown
