"""An engine with shortcuts does what DeepSpeed does without them, bit by bit, on 1 and 2 ranks."""

import itertools
import math

import pytest
from forked_ranks import run_on_ranks

STEPS, ACCUMULATION, MICRO_WINDOWS = 8, 3, 2
UNUSED_STEP, LATE_STEP, BAD_STEP, DISCARDED_BEFORE = 3, 4, 6, 7
CLIP = 0.3  # well below the norms
AS_IT_IS = {"zero_optimization": {"allgather_partitions": True}}  # ZeRO's own default, but set
CASES = [
    *itertools.product((0, 1, 2, 3), ("fp32", "bf16"), (CLIP,)),
    *itertools.product((2, 3), ("fp32",), (0.0,)),
]
OFFLOADED = [(1, "fp32", CLIP), (2, "fp32", CLIP), (3, "fp32", CLIP)]


def name_of(case, how):
    """``how``: short, whole (without shortcuts) or offloaded."""
    stage, precision, clip_norm = case
    return f"zero{stage}-{precision}-{clip_norm}-{how}"


def train_all(ranks):
    """Of every case, by its name, a row of every step."""
    ways = [
        *itertools.product(CASES, ("short", "whole")),
        *itertools.product(OFFLOADED, ("offloaded",)),
    ]
    return {name_of(case, how): train_one(case, how, ranks) for case, how in ways}


def train_one(case, how, ranks):
    """Steps of the toy with a branch: in one step unused, in one used by its last micro-batch
    alone, in one not finite on the last rank, and before one with a gradient that is discarded.
    """
    from toy_engine import CPU, LENGTH, Toy, content_of, draw_windows, fill, kind_of

    from lmscale.config import plan_batches
    from lmscale.config.training import EngineConfig
    from lmscale.engine.build import build_engine, parameter_context
    from lmscale.model.initialize import Declared
    from lmscale.ranks.collectives import sum_float64
    from lmscale.ranks.mesh import Axis, Mesh

    class Branched(Toy):
        """Its last block is the branch."""

        def forward(self, ids, is_taken):
            self.blocks, blocks = self.blocks[: 3 if is_taken else 2], self.blocks
            try:
                return super().forward(ids)
            finally:
                self.blocks = blocks

    stage, precision, clip_norm = case
    config = EngineConfig.model_validate(
        {
            "precision": precision,
            "zero_stage": stage,
            "offload_optimizer": how == "offloaded",
            "optimizer": {"clip_norm": clip_norm},
            "schedule": {"kind": "constant"},
            "deepspeed": AS_IT_IS if how == "whole" else {},
        }
    )
    plan = plan_batches(
        global_windows=MICRO_WINDOWS * ACCUMULATION * ranks.world_size,
        micro_windows=MICRO_WINDOWS,
        data_ranks=ranks.world_size,
    )
    with parameter_context(config, plan, CPU):
        toy = Branched(1)
    if (stage, precision) == (3, "bf16"):
        fill(toy, Branched(1))  # there the draws are of bf16
    declared = {name: Declared(kind=kind_of(name)) for name, _ in toy.named_parameters()}
    data = Axis(rank=ranks.rank, size=ranks.world_size)
    engine = build_engine(toy, declared, config, plan=plan, mesh=Mesh(data=data), device=CPU)

    def forwards(step, seen):
        windows = draw_windows(step)
        for micro in range(ACCUMULATION):
            first = (ranks.rank * ACCUMULATION + micro) * MICRO_WINDOWS
            is_taken = step != UNUSED_STEP and (step != LATE_STEP or micro == ACCUMULATION - 1)
            is_bad = step == BAD_STEP and micro == 1 and ranks.rank == ranks.world_size - 1

            def forward(first=first, is_taken=is_taken, is_bad=is_bad):
                loss = engine(ids=windows[first : first + MICRO_WINDOWS], is_taken=is_taken)
                seen.append(float(loss.detach()))
                return loss * (math.inf if is_bad else 1.0)

            yield forward

    targets, rows = plan.global_windows * LENGTH, []
    for step in range(1, STEPS + 1):
        if step == DISCARDED_BEFORE:
            engine.accumulate(list(forwards(77, []))[:-1], targets=1)
            engine.discard_gradient()
        seen = []
        engine.accumulate(forwards(step, seen), targets=targets)
        update = engine.update(learning_rate=0.02)
        norm = update.gradient_norm
        rows.append(
            {
                "loss": sum_float64([sum(seen)])[0] / targets,
                "norm": norm if math.isfinite(norm) else None,
                "is_skipped": update.is_skipped,
                "content": content_of(engine),
            }
        )
    engine.close()
    return rows


@pytest.fixture(scope="module")
def saw(tmp_path_factory):
    """Number of ranks → what rank 0 saw."""
    folder = tmp_path_factory.mktemp("shortcuts")
    saw = {}
    for number in (1, 2):
        place = folder / str(number)
        place.mkdir()
        saw[number] = run_on_ranks(train_all, number, place)[0]
    return saw


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shortcuts_change_no_bit(saw, world_size, case):
    short, whole = (saw[world_size][name_of(case, how)] for how in ("short", "whole"))
    for step, (one, other) in enumerate(zip(short, whole, strict=True), start=1):
        assert one == other, step


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_step_that_is_not_finite_is_skipped_and_no_other(saw, world_size):
    for name, rows in saw[world_size].items():
        skipped = [step for step, row in enumerate(rows, start=1) if row["is_skipped"]]
        assert skipped == [BAD_STEP], name
        assert [row["norm"] is None for row in rows] == [row["is_skipped"] for row in rows], name
        assert rows[BAD_STEP - 1]["content"] == rows[BAD_STEP - 2]["content"], name


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2])
def test_what_no_micro_batch_used_has_no_gradient_of_another_step(saw, world_size):
    """At every stage alike, which would not be if one of them kept or added an old gradient."""
    for name, rows in saw[world_size].items():
        precision, clip_norm = name.split("-")[1:3]
        if clip_norm == str(CLIP):
            expected = saw[world_size][name_of((0, precision, CLIP), "whole")]
            # Sums in other orders; bf16 has 8 bits.
            tolerance = 1e-4 if precision == "fp32" else 0.02
            for key in ("loss", "norm"):
                numbers, others = ([row[key] or 0.0 for row in each] for each in (rows, expected))
                assert numbers == pytest.approx(others, rel=tolerance), (name, key)
