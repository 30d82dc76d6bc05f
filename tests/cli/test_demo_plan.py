"""The demo suits its machine: the faster precision, threads for free cores, steps that fit."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.cli import doctor
from lmscale.cli.demo import _describe_schedule
from lmscale.cli.demo_plan import (
    MAX_LINE_SECONDS,
    MAX_SECONDS,
    MIN_STEPS,
    PLANNED,
    THREADS_RATIO,
    Trial,
    plan_cpu,
    plan_overrides,
    plan_steps,
)
from lmscale.config import load_config
from lmscale.config.assets import find_config
from lmscale.ranks.device import free_cores, num_cores, product_rates

OLD, NEW = {"fp32": 30.0, "bf16": 4.0}, {"fp32": 100.0, "bf16": 500.0}
DEMO = load_config(find_config(Path("demo")))
SECONDS = st.floats(1e-3, 100)


@pytest.mark.parametrize(("rates", "precision"), [(OLD, "fp32"), (NEW, "bf16")])
@pytest.mark.parametrize("cores", [*range(1, 10), 64, 255])
def test_the_faster_precision_is_taken_and_no_more_threads_than_free_cores(cores, rates, precision):
    machine = plan_cpu(cores, rates)
    assert machine.precision == precision and f"; {precision}, since" in machine.described
    assert machine.threads is not None
    for half, (ranks, threads) in enumerate(zip(machine.ranks, machine.threads, strict=True)):
        assert ranks * threads <= max(cores, ranks)  # with one core the two ranks share it
        assert machine.environment(half).get("OMP_NUM_THREADS") in (str(threads), None)
    assert ("share" in machine.described) == (cores == 1)


def test_threads_that_a_person_has_set_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in plan_cpu(4, OLD).environment(0)


@settings(deadline=None)  # the machine may be busy
@given(SECONDS, SECONDS, st.floats(0, 600))
def test_the_steps_are_as_many_as_fit_and_their_settings_in_proportion(step, start, passed):
    machine, trial = plan_cpu(2, OLD), Trial(step_seconds=step, start_seconds=start)
    schedule = plan_steps(trial, machine, wanted=DEMO.train.steps, passed_seconds=passed)
    assert MIN_STEPS <= schedule.steps <= DEMO.train.steps
    assert schedule.steps == MIN_STEPS or passed + schedule.seconds <= MAX_SECONDS + 1e-6
    every = schedule.log_every_steps
    assert every == 1 or every * step * THREADS_RATIO <= MAX_LINE_SECONDS
    settings = plan_overrides(DEMO, machine, schedule)
    assert set(settings) <= set(PLANNED)
    config = load_config(find_config(Path("demo")), [f"{k}={v}" for k, v in settings.items()])
    assert config.train.steps == schedule.steps
    assert config.engine.precision == "fp32"
    rates = config.engine.schedule
    assert rates.warmup_steps / config.train.steps <= 20 / 600
    assert rates.decay_steps and rates.decay_steps / config.train.steps <= 300 / 600
    assert 1 <= config.evaluation.every_steps <= config.train.steps
    assert 1 <= config.checkpoint.every_steps < config.train.steps


def test_a_fast_machine_takes_the_demo_as_it_stands():
    machine, trial = plan_cpu(2, NEW), Trial(step_seconds=0.3, start_seconds=6)
    schedule = plan_steps(trial, machine, wanted=DEMO.train.steps, passed_seconds=60)
    assert (schedule.steps, schedule.log_every_steps) == (600, 10)
    assert plan_overrides(DEMO, machine, schedule) == {
        "engine.precision": "bf16",
        "train.log_every_steps": 10,
    }


def test_a_machine_too_slow_for_the_fewest_steps_is_promised_no_minutes(capsys):
    trial = Trial(step_seconds=8.0, start_seconds=20.0)
    machine = plan_cpu(2, OLD)
    schedule = plan_steps(trial, machine, wanted=300, passed_seconds=120.0)
    _describe_schedule(trial, schedule, 300)
    told = capsys.readouterr().out
    assert "20 steps instead of 300. From here it will take about 11" in told


def test_what_the_machine_can_do_is_measured():
    assert 1 <= free_cores(0.01) <= num_cores()
    assert all(rate > 0 for rate in product_rates(0.001).values())


@pytest.mark.parametrize(("rates", "precision"), [(OLD, "fp32"), (NEW, "bf16")])
def test_the_doctor_says_what_auto_is_on_this_cpu(monkeypatch, rates, precision):
    monkeypatch.setattr(doctor, "product_rates", lambda: rates)
    (finding,) = doctor.check_precision()
    assert f"bf16 is {rates['bf16'] / rates['fp32']:.2g} × as fast" in finding.found
    assert finding.is_ok and f"auto is {precision} here" in finding.found
