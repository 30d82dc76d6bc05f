"""muP's coordinate check, as a test and as the command that draws it."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest
from coordinate_check import PARTS, measure_widths, slope_of

WIDTHS = (32, 64, 128, 256)


@pytest.fixture(scope="module")
def slopes():
    """(part, with muP?) → how the change of two updates grows, as a power of the width."""
    sizes = {
        base: measure_widths(WIDTHS, base_width=base, updates=2, seeds=2, lr=0.02)
        for base in (0, 32)
    }
    return {(part, base > 0): slope_of(sizes[base][part][-1]) for part in PARTS for base in sizes}


@pytest.mark.parametrize("part", PARTS)
def test_updates_move_numbers_further_in_a_wider_model_but_for_mup(slopes, part):
    # At these widths, of the logits: 0.50 and 0.15; of the blocks' output: 2.06 and -0.14.
    assert slopes[part, False] > 0.4
    assert abs(slopes[part, True]) < 0.2


def test_the_picture_has_a_panel_for_each_part_with_mup_and_without(run_script, tmp_path):
    sizes = ("--widths", "16", "32", "--updates", "1", "--seeds", "1")
    out = tmp_path / "check.svg"
    run_script(sys.executable, "benchmarks/coordinate_check.py", *sizes, "--out", str(out))
    picture = ElementTree.parse(out).getroot()
    kind = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f"{kind}polyline")) == 2 * len(PARTS)
