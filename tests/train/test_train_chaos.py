"""The short form of chaos.py; `python tests/chaos.py --faults 1000 --seed 1` does it at length."""

import re
from pathlib import Path

import pytest
from chaos_plan import DAMAGES, FAMILIES, plan_attempt
from forked_processes import run_process

from lmscale.runs.faults import KINDS, MOMENTS, parse_faults

SCRIPT = Path(__file__).parents[1] / "chaos.py"
FAULTS, SEED = 6, 3


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_that_is_broken_in_every_way_loses_nothing_and_repeats_nothing(tiny_data, tmp_path):
    (tmp_path / "data").symlink_to(tiny_data)
    words = ("--faults", FAULTS, "--seed", SEED, "--folder", tmp_path)
    code, said = run_process("script", [SCRIPT, *words])
    assert code == 0, said[-8000:]
    assert "weights bit-equal" in said
    assert re.search(r"^rewound, .*, rewinds: [1-9]", said, re.MULTILINE)
    assert said.endswith("Nothing was lost and nothing repeated.\n")


def attempts(family, count=600):
    return [plan_attempt(family, 1, number, start=20) for number in range(count)]


def test_the_long_form_draws_every_kind_of_fault_at_every_moment_on_every_topology():
    plans = [plan for family in FAMILIES for plan in attempts(family)]
    faults = [fault for plan in plans for fault in parse_faults(";".join(plan.faults))]
    assert {fault.kind for fault in faults} == set(KINDS)
    assert {fault.at for fault in faults} == set(MOMENTS)
    assert {plan.num_ranks for plan in plans} == {1, 2, 3, 4}
    assert {plan.overrides["engine.zero_stage"] for plan in plans} == {0, 1, 2, 3}
    assert {plan.damage for plan in plans} == set(DAMAGES)
    assert all(fault.rank is None or fault.rank < 4 for fault in faults)


def test_every_fault_names_a_rank_that_its_start_has():
    for family in FAMILIES:
        for plan in attempts(family):
            ranks = {fault.rank for fault in parse_faults(";".join(plan.faults))} - {None}
            assert ranks <= set(range(plan.num_ranks)) and set(plan.victims) <= set(
                range(plan.num_ranks)
            )


def test_where_the_weights_are_compared_there_is_one_topology_and_no_fault_that_changes_them():
    fixed = [family for family in FAMILIES if family.is_fixed]
    assert fixed and abs(sum(family.share for family in FAMILIES) - 1) < 1e-9
    for family in fixed:
        assert family.is_exact
        shapes = {
            (plan.num_ranks, plan.overrides["engine.zero_stage"])
            + (plan.overrides["batch.micro_windows"],)
            for plan in attempts(family)
        }
        assert len(shapes) == 1


def test_the_same_seed_draws_the_same_attempts_and_another_one_others():
    family = FAMILIES[1]
    first, again = (plan_attempt(family, 7, 3, start=4) for _ in range(2))
    assert first == again
    assert first != plan_attempt(family, 8, 3, start=4)
