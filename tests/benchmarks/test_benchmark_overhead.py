"""A step asks the host for one answer of its own, and dispatches little beside the model's work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from forked_ranks import run_on_ranks

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from overhead import Point, render_axis, slope

SETTINGS = [(0, "fp32"), (0, "bf16"), (1, "bf16"), (1, "fp32"), (2, "bf16"), (3, "bf16")]
GROUPS = 2  # of parameters, decayed and not
# Of DeepSpeed 0.19.8, in each of its steps: it asks whether the norm is finite, at stage 1 and 2
# once for every group of parameters and once for all, and at stage 0 it adds norms up on the host.
DEEPSPEEDS = {
    (0, "fp32"): {},
    (0, "bf16"): {"deepspeed/runtime/utils.py:get_weight_norm": 2 * GROUPS},
    (1, "bf16"): {
        "deepspeed/runtime/utils.py:is_invalid_grad_norm": 1,
        "deepspeed/runtime/utils.py:clip_tensors_by_global_norm": 1,
    },
    (1, "fp32"): {"deepspeed/runtime/utils.py:is_invalid_grad_norm": GROUPS + 1},
    (2, "bf16"): {"deepspeed/runtime/utils.py:is_invalid_grad_norm": GROUPS + 1},
    (3, "bf16"): {"deepspeed/runtime/utils.py:is_invalid_grad_norm": 1},
}


def count(ranks):
    """Of a step of 2 and one of 4 micro-batches a rank: operators and waits, by loop."""
    import torch
    from host_costs import counting
    from synthetic import build_config, random_steps
    from training_loops import BareLoop, LmscaleLoop

    from lmscale.ranks.mesh import plan_mesh

    cpu, saw = torch.device("cpu"), {}
    for stage, precision in SETTINGS:
        for accumulation in (2, 4):
            settings = [f"engine.zero_stage={stage}", f"engine.precision={precision}"]
            windows = accumulation * ranks.world_size
            config = build_config("narrow", [*settings, f"batch.global_windows={windows}"])
            plan = config.batch.plan(ranks.world_size)
            loops = {
                "lmscale": LmscaleLoop(
                    config, plan, cpu, random_steps(config, plan), mesh=plan_mesh(ranks)
                ),
                "bare": BareLoop(config, plan, cpu, random_steps(config, plan)),
            }
            for name, loop in loops.items():
                loop.run(2)
                with counting() as costs:
                    loop.run(1)
                key = f"{stage} {precision} {accumulation} {name}"
                saw[key] = [costs.operators, dict(costs.waits)]
                loop.close()
    return saw


@pytest.fixture(scope="module")
def saw(tmp_path_factory):
    """Number of ranks → what the first one counted."""
    return {n: run_on_ranks(count, n, tmp_path_factory.mktemp(f"{n}"))[0] for n in (1, 2)}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("stage", "precision"), SETTINGS)
def test_a_step_waits_for_one_answer_of_our_own_and_for_those_that_deepspeed_asks(
    saw, ranks, stage, precision
):
    for accumulation in (2, 4):
        _, waits = saw[ranks][f"{stage} {precision} {accumulation} lmscale"]
        ours = {place: n for place, n in waits.items() if not place.startswith("deepspeed/")}
        assert ours == {"lmscale/train/loop.py:_agree": 1}
        theirs = {place: n for place, n in waits.items() if place.startswith("deepspeed/")}
        assert theirs == DEEPSPEEDS[stage, precision]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), SETTINGS)
def test_a_micro_batch_dispatches_little_more_than_the_models_own_operators(saw, stage, precision):
    def per_micro_batch(name):
        few, many = (saw[1][f"{stage} {precision} {n} {name}"][0] for n in (2, 4))
        return (many - few) / 2

    # Of some 500: sums of the figures, and at ZeRO 2 and 3 a view and an addition of each gradient.
    assert per_micro_batch("lmscale") <= 1.2 * per_micro_batch("bare")


def test_a_slope_is_that_of_the_line_and_a_table_has_a_row_for_every_value():
    points = [Point(n, 5 + 0.25 * n, 4 + 0.125 * n, (10 * n, 9 * n)) for n in (1, 2, 4)]
    assert slope(points, lambda point: point.lmscale) == pytest.approx(0.25)
    lines = render_axis("layers", points).splitlines()
    assert len(lines) == 5 and lines[-1].split() == ["slope", "250", "µs", "125", "µs"]
