"""How a step is divided, over ranks, micro-batches and ZeRO stages, does not change what it does.

Three starts, of 1, 2 and 4 real ranks over gloo; each trains all its cases for three steps.
"""

import itertools
from pathlib import Path

import pytest
from rank_cases import Case, run_cases

from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

STEPS = 3
WORLD_SIZES = (1, 2, 4)
GLOBAL_WINDOWS = 16
LEARNING_RATE = 3e-3
# ZeRO 3 last: DeepSpeed 0.19.8 replaces torch.nn.functional.linear there, for the whole process.
# Every two of the three choices meet.
DIVISIONS = [
    (world_size, stage, (1, 4)[(number + stage) % 2])
    for (number, world_size), stage in itertools.product(enumerate(WORLD_SIZES), (0, 1, 2, 3))
]
# An update moves a weight by up to the learning rate, 3e-3, and Adam divides out the gradient's
# size: where a gradient nearly cancels, the order of a float32 sum shows in full. Measured over all
# divisions: 3e-6 after five updates, a thousandth of one. Twice that leaves room for another CPU.
WEIGHTS_TOLERANCE = 6e-6
# Norms are sums of thousands of squares; float32 rounds them to 6e-8 of their size. A step whose
# gradient was scaled wrongly by ranks or micro-batches would be off by a factor of 2 to 16: Adam
# would hide that, the norm does not.
NORM_TOLERANCE = 1e-6


def name_of(precision: str, world_size: int, stage: int, accumulation: int) -> str:
    return f"{precision}-ranks{world_size}-zero{stage}-accumulate{accumulation}"


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """Name → (reports, final fp32 weights)."""
    root = tmp_path_factory.mktemp("equal")
    divisions = [("fp32", *division) for division in DIVISIONS]
    divisions += [("bf16", 2, stage, 1) for stage in (0, 1, 2, 3)]
    starts = {
        world_size: [
            _case(root, tiny_data, *division)
            for division in sorted(divisions, key=lambda d: d[2])
            if division[1] == world_size
        ]
        for world_size in WORLD_SIZES
    }
    reports = run_cases(starts, root / "starts")
    return {
        case.name: (reports[case.name], load_weights(LocalPlace(Path(case.folder) / "checkpoints")))
        for cases in starts.values()
        for case in cases
    }


def _case(root, data, precision, world_size, stage, accumulation) -> Case:
    name = name_of(precision, world_size, stage, accumulation)
    return Case(
        name=name,
        data=str(data),
        folder=str(root / name),
        overrides={
            "engine.precision": precision,
            "engine.zero_stage": stage,
            "engine.optimizer.lr": LEARNING_RATE,
            "batch.global_windows": GLOBAL_WINDOWS,
            "batch.micro_windows": GLOBAL_WINDOWS // world_size // accumulation,
            "train.steps": STEPS,
            "checkpoint.every_steps": STEPS,
        },
    )


def furthest(weights, others) -> float:
    assert weights.keys() == others.keys()
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


def mean_distance(weights, others) -> float:
    distances = [(weights[name] - others[name]).abs() for name in weights]
    return sum(float(d.sum()) for d in distances) / sum(d.numel() for d in distances)


@pytest.mark.parametrize(("world_size", "stage", "accumulation"), DIVISIONS)
def test_every_division_of_a_step_gives_the_same_weights(trained, world_size, stage, accumulation):
    reports, weights = trained[name_of("fp32", world_size, stage, accumulation)]
    expected_reports, expected = trained[name_of("fp32", 1, 0, 1)]
    assert furthest(weights, expected) < WEIGHTS_TOLERANCE
    for report, other in zip(reports, expected_reports, strict=True):
        assert report.gradient_norm == pytest.approx(other.gradient_norm, rel=NORM_TOLERANCE)
        assert report.loss == pytest.approx(other.loss, rel=NORM_TOLERANCE)
        assert (report.targets, report.digest) == (other.targets, other.digest)


def test_three_steps_move_the_weights_far_beyond_the_tolerance(trained):
    reports, _ = trained[name_of("fp32", 1, 0, 1)]
    assert [report.step for report in reports] == [1, 2, 3]
    assert reports[-1].loss < reports[0].loss - 0.02


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_with_fp32_masters_stays_close_to_fp32_at_every_stage(trained, stage):
    reports, weights = trained[name_of("bf16", 2, stage, 1)]
    expected_reports, expected = trained[name_of("fp32", 1, 0, 1)]
    # bf16 has 8 bits: a value is off by up to 2^-9, 0.2 %, and the means over 500 targets by less.
    for report, other in zip(reports, expected_reports, strict=True):
        assert report.loss == pytest.approx(other.loss, rel=2**-9)
        assert report.gradient_norm == pytest.approx(other.gradient_norm, rel=2**-6)
    # Adam may turn the sign of a gradient that is all rounding: one element may be off by updates,
    # the mean over all may not. Masters kept in bf16 would be off by 2^-9 of weights of 0.02 and
    # lose most of each update: the mean would be some 1e-3.
    assert mean_distance(weights, expected) < LEARNING_RATE / 50


def test_bf16_gives_the_same_weights_at_stages_1_to_3(trained):
    _, expected = trained[name_of("bf16", 2, 1, 1)]
    for stage in (2, 3):
        assert furthest(trained[name_of("bf16", 2, stage, 1)][1], expected) < WEIGHTS_TOLERANCE
