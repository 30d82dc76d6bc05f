"""A run whose first steps take fewer windows: the same at every stage, wherever it goes on, as one
whose batch a person raises between two starts; and its audit is clean.
"""

from __future__ import annotations

import pytest
from rank_cases import Case, run_cases
from tiny_run import ledger_of, run_lmscale, tiny_config, write_tiny_config

from lmscale.objective.objective import build_preparation
from lmscale.stream.audit import audit_run

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
STEPS = 6
ROWS = [[2, 4], [4, 8]]  # until so many steps, so many windows; then 12
FIRST_SAMPLES = [0, 4, 8, 16, 24, 36]
# On 2 ranks 2, 4 and 6 windows each, of at most 2 at a time: other numbers of micro-batches.
SETTINGS = {"train.steps": STEPS, "checkpoint.every_steps": STEPS, "batch.micro_windows": 2}
WARM = SETTINGS | {"batch.warmup": ROWS}

OFFLOADED = {"engine.zero_stage": 2, "engine.offload_optimizer": True}
# ZeRO 3 last: it changes torch for good.
WAYS = {f"zero {stage}": {"engine.zero_stage": stage} for stage in (0, 1, 2)}
WAYS |= {"offloaded": OFFLOADED, "zero 3": {"engine.zero_stage": 3}}


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """Case's name → its reports."""
    root = tmp_path_factory.mktemp("warmup")

    def case(name, overrides, *, run="", stop_after=None):
        folder = str(root / (run or name))
        data = str(tiny_data)
        return Case(name=name, data=data, folder=folder, overrides=overrides, stop_after=stop_after)

    on_two = [case("begun", WARM | {"engine.zero_stage": 3}, run="cut", stop_after=3)]
    on_two += [
        case(f"raised {n}", SETTINGS | {"batch.global_windows": size}, run="raised", stop_after=n)
        for n, size in ((2, 4), (4, 8), (STEPS, 12))
    ]
    for way, settings in WAYS.items():
        on_two += [case(way, WARM | settings)]
    on_one = [case("ended", WARM, run="cut")]
    return run_cases({2: [*on_two[1:], on_two[0]], 1: on_one}, root / "starts")


@pytest.mark.parametrize("way", WAYS)
def test_a_warm_up_takes_the_steps_of_runs_whose_batch_is_raised(trained, way):
    raised = [report for n in (2, 4, STEPS) for report in trained[f"raised {n}"]]
    warm = trained[way]
    assert [report.first_n for report in warm] == FIRST_SAMPLES
    if way == "zero 1":  # as the other runs
        assert warm == raised
    for report, expected in zip(warm, raised, strict=True):
        assert (report.digest, report.targets) == (expected.digest, expected.targets)
        # Sums of fp32 in another order.
        assert report.loss == pytest.approx(expected.loss, rel=1e-6)
        assert report.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)


def test_a_run_goes_on_in_mid_warm_up_at_another_stage_and_world_size(trained):
    cut = [*trained["begun"], *trained["ended"]]
    for report, expected in zip(cut, trained["zero 0"], strict=True):
        assert (report.first_n, report.digest) == (expected.first_n, expected.digest)
        assert report.loss == pytest.approx(expected.loss, rel=1e-6)


def test_the_audit_of_a_run_with_a_warm_up_is_clean(tiny_data, tmp_path):
    config = write_tiny_config(tmp_path / "config.yaml", tiny_data, tmp_path / "run", WARM)
    settings = tiny_config(tiny_data, tmp_path / "run", WARM)
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    at_first, grown = (windows * settings.window.stride for windows in (4, 12))
    assert f" {at_first} tokens a step, and by batch.warmup up to {grown} (" in ended.output
    for step, before, after in ((3, 4, 8), (5, 8, 12)):
        assert f"from step {step} on global_windows = {after} (before: {before})" in ended.output
    assert len(ledger_of(tmp_path / "run")) == STEPS
    report = audit_run(settings, tmp_path / "run", build_preparation)
    assert report.is_clean and report.samples == settings.samples_after(STEPS) == 48
