import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.config.load import dump_config, parse_config, parse_yaml
from lmscale.plan.calibration import Calibration, PhaseCosts, ProductTime, interpolate
from lmscale.plan.check import compare_speed
from lmscale.plan.counts import PHASES
from lmscale.plan.devices import Device, find_device, load_device, plan_machine
from lmscale.plan.fitting import MeasuredPhase, fit_phases, non_negative_least_squares
from lmscale.plan.reckoned import count_step, reckon_step
from lmscale.plan.speed import plan_step

SIZES = (64, 256, 1024)


def products(rate):
    """Of a device that does ``rate`` FLOP/s in every product."""
    return tuple(
        ProductTime(
            precision="fp32",
            m=m,
            n=n,
            k=k,
            forward_seconds=2 * m * n * k / rate,
            backward_seconds=4 * m * n * k / rate,
        )
        for m in SIZES
        for n in SIZES
        for k in SIZES
    )


def build(layers, width, *, stage=1, more=()):
    return parse_config(
        "run: {name: planned}",
        [
            f"model={{layers: {layers}, width: {width}, heads: 2, vocab_size: 512}}",
            "tokenizer.vocab_size=512",
            "stream.sequence_length=64",
            "batch={global_windows: 8, micro_windows: 2}",
            f"engine={{precision: fp32, zero_stage: {stage}}}",
            *more,
        ],
    )


def device(phases=()):
    return find_device("cpu").model_copy(
        update={
            "measured": Calibration(
                torch="2.13", precision="fp32", products=products(1e10), phases=phases
            )
        }
    )


@given(st.tuples(*(st.sampled_from(SIZES),) * 3))
def test_between_points_is_the_point_itself_at_a_point(place):
    points = {(p.m, p.n, p.k): p.forward_seconds for p in products(1e9)}
    assert interpolate(points, place) == pytest.approx(points[place])


@given(st.tuples(*(st.integers(1, 5000),) * 3))
def test_what_goes_with_the_volume_is_so_between_points_beyond_them_and_where_some_lack(place):
    points = {(p.m, p.n, p.k): p.forward_seconds for p in products(1e9)}
    points = {key: value for key, value in points.items() if sum(key) < 2000}
    assert interpolate(points, place) == pytest.approx(2 * math.prod(place) / 1e9)


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.integers(0, 99))
def test_a_fit_finds_the_costs_that_made_the_seconds(costs, seed):
    matrix = np.random.default_rng(seed).random((12, 3))
    found = non_negative_least_squares(matrix.tolist(), (matrix @ costs).tolist())
    assert matrix @ found == pytest.approx(matrix @ costs, abs=1e-3)


def test_steps_are_planned_as_the_steps_that_the_costs_were_fitted_to():
    truth = [
        PhaseCosts(
            phase=phase,
            seconds={"launches": 1e-5, "moved_bytes": 1e-10, "logits": 1e-9, "scores": 1e-9},
            stage_seconds={"1": {"micro": 1e-3, "tensors": 1e-5, "elements": 1e-9}},
        )
        for phase in PHASES
    ]
    made = device(truth)
    configs = [build(n, w) for n in (1, 2, 5) for w in (32, 64, 256)]
    rows = []
    for config in configs:
        counted = count_step(config, made, ranks=1)
        for phase, spent in reckon_step(counted, made).items():
            rows.append(
                MeasuredPhase(
                    phase=phase,
                    stage=1,
                    counts=counted.counts[phase],
                    known_seconds=counted.products.get(phase, 0.0),
                    seconds=sum(spent.values()),
                )
            )
    fitted = device(fit_phases(rows))
    other = build(3, 128)
    planned, true = (plan_step(other, plan_machine(each)).seconds for each in (fitted, made))
    assert planned == pytest.approx(true, rel=0.05)


def test_a_calibrated_device_is_read_back_from_its_file(tmp_path):
    path = tmp_path / "cpu.yaml"
    found = device([PhaseCosts(phase="step", seconds={"micro": 0.1}, stage_seconds={"2": {}})])
    path.write_text(dump_config(found))
    assert load_device(path) == found
    assert Device.model_validate(parse_yaml(path.read_text(), "cpu")) == found


def test_a_run_is_set_beside_its_plan(tmp_path):
    step = plan_step(build(1, 32), plan_machine(device()))
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            f'{{"step": {n}, "time": {n}, "speed/step_seconds": {seconds}, '
            f'"speed/positions_per_second": 1000, "phase/forward_seconds": {seconds / 2}}}\n'
            for n, seconds in ((1, 99.0), (2, 2.0), (3, 4.0), (4, 3.0))
        )
    )
    rows = {row.name: row for row in compare_speed(tmp_path, step, is_gpu=False)}
    assert rows["step"].measured == 3.0  # without the first line, which compiled and allocated
    assert rows["  forward"].measured == 1.5
    assert rows["step"].error == pytest.approx(step.seconds / 3 - 1)
    assert "  backward" not in rows
