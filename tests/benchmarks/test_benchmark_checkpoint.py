"""The checkpoint benchmark runs, and takes its ratios within rounds."""

from __future__ import annotations

import re
import sys

import checkpoint as benchmark
import pytest


def test_it_prints_every_ratio_of_a_tiny_run(run_script):
    printed = run_script(
        sys.executable, "benchmarks/checkpoint.py", "--shape", "tiny", "--rounds", "1"
    )
    for name in benchmark.RATIOS:
        assert re.search(rf"^{re.escape(name)} +\d+\.\d{{3}}$", printed, re.M), printed
    assert "command: python benchmarks/checkpoint.py --shape tiny --rounds 1\n" in printed


def test_a_ratio_is_taken_within_each_round():
    # The machine slows down to a tenth in the second round: medians of each alone would hide it.
    rounds = [{"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 20.0}, {"a": 1.1, "b": 2.2}]
    assert benchmark.ratios(rounds, "a", "b") == pytest.approx(0.5)
