"""A training that by the plan cannot fit is refused, and no mistake of the plan blocks a user."""

from dataclasses import replace

import pytest
from slurm_cases import make_request

from launcher import planned
from launcher.data_checks import Findings
from launcher.plan import plan_job

PROFILE = "time: 1:00:00\ntasks_per_node: 8\ngpus_per_node: 8\ngpu: t4\n"


def check(**changes) -> Findings:
    request = replace(make_request(PROFILE), **changes)
    findings = Findings()
    planned.check_plan(request, plan_job(request, "train"), findings)
    return findings


def test_what_cannot_fit_is_refused_with_the_way_round():
    [problem] = check().problems
    assert "cannot fit 1 node" in problem
    assert problem.endswith("--ignore-plan submits it.")


def test_a_refusal_that_is_ignored_is_a_warning():
    found = check(ignores_plan=True)
    assert not found.problems
    assert "cannot fit 1 node" in found.warnings[-1]


def test_a_mistake_of_the_planner_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(planned, "check_fits", fail)
    found = check()
    assert not found.problems
    assert "by a mistake of the planner" in found.warnings[-1]
