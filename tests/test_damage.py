"""A little of what ``python tests/damage.py`` does at length: no damage passes without a word."""

from __future__ import annotations

import random

import pytest
from damage import Scene, render_table, run_cases
from damage_runs import RUN_SCENES
from damage_scenes import SCENES

from lmscale.errors import DataError


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_random_damage_to_what_is_read_back_is_told_by_name_or_healed_or_harmless():
    outcomes = run_cases(SCENES, cases=48, seed=5)
    assert [outcome for outcome in outcomes if not outcome.is_good] == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_random_damage_to_a_runs_own_files_is_told_by_name_or_healed_or_harmless():
    outcomes = run_cases(RUN_SCENES, cases=24, seed=5)
    assert [outcome for outcome in outcomes if not outcome.is_good] == []


def test_the_harness_sees_what_must_not_be():
    def use(folder):
        content = (folder / "file").read_bytes()
        if content == b"":
            raise DataError("something is wrong somewhere")
        return str(content)

    def build(folder):
        (folder / "file").write_bytes(random.Random(1).randbytes(100))

    careless = Scene(name="careless", build=build, use=use, rows={"`file`": ["file"]})
    kinds = ("bit", "cut", "empty", "folder")
    outcomes = run_cases([careless], cases=30, seed=1, kinds=kinds)
    found = {outcome.kind: outcome.verdict for outcome in outcomes}
    assert found == dict(zip(kinds, ("silent", "silent", "unnamed", "traceback"), strict=True))
    assert "| file | cases | told | healed | harmless | silent |" in render_table(outcomes)
