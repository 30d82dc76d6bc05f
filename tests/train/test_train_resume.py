"""A run that was stopped and resumed is the run that was not, bit by bit or within rounding.

Three starts of real ranks over gloo do all attempts in process; each attempt opens its run anew.
"""

import weakref
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from rank_cases import Case, run_cases

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.train import assemble

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

STEPS, STOP = 6, 3
LONG = 50
WHOLE, HALVES = "whole", "halves"
SAME = {  # fp32 at every stage is test_checkpoint_elastic.py's
    f"{precision}-zero{stage}": {"engine.precision": precision, "engine.zero_stage": stage}
    for precision, stage in [("fp32", 0), ("fp32", 2), *(("bf16", s) for s in (0, 1, 2, 3))]
}
SAME |= {
    "dropout-fp32-zero2": {"model.dropout": 0.2, "engine.zero_stage": 2},
    "dropout-bf16-zero3": {
        "model.dropout": 0.2,
        "engine.zero_stage": 3,
        "engine.precision": "bf16",
    },
}
OFFLOAD = {
    f"offload-zero{stage}": {
        "engine.zero_stage": stage,
        "engine.precision": precision,
        "engine.offload_optimizer": True,
        "engine.offload_parameters": stage == 3,
    }
    for stage, precision in ((1, "bf16"), (3, "bf16"))
}


@pytest.fixture(scope="module")
def attempts(tiny_data, tmp_path_factory):
    """Name of an attempt → its reports, and the folder that holds the runs' folders."""
    root = tmp_path_factory.mktemp("resume")

    def case(name, run, overrides, stop_after=None):
        overrides = {"train.steps": STEPS, "checkpoint.every_steps": 1000, **overrides}
        return Case(
            name=name,
            data=str(tiny_data),
            folder=str(root / "runs" / run),
            overrides=overrides,
            stop_after=stop_after,
        )

    def whole_and_halves(name, overrides, later=None):
        yield case(f"{name}/{WHOLE}", f"{name}-{WHOLE}", overrides)
        yield case(f"{name}/first", f"{name}-{HALVES}", overrides, stop_after=STOP)
        yield case(f"{name}/second", f"{name}-{HALVES}", later or overrides)

    on_2 = [c for name, o in (SAME | OFFLOAD).items() for c in whole_and_halves(name, o)]
    plain = {"engine.zero_stage": 2}
    offloaded = {**plain, "engine.offload_optimizer": True}
    on_2 += whole_and_halves("to-offload", plain, later=offloaded)
    on_2 += whole_and_halves("from-offload", offloaded, later=plain)
    on_2.sort(key=lambda c: c.overrides["engine.zero_stage"])  # see test_engine_equal_weights.py
    stage_1 = {"train.steps": LONG, "engine.zero_stage": 1}
    on_2 += [case(f"long/{WHOLE}", f"long-{WHOLE}", stage_1)]
    on_2 += [case("long/2 ranks, ZeRO 1", "long", stage_1, stop_after=13)]
    stage_3 = {"train.steps": LONG, "engine.zero_stage": 3, "batch.micro_windows": 4}
    on_1 = [case("long/1 rank, ZeRO 3", "long", stage_3, stop_after=25)]
    stage_2, stage_0 = (
        {"train.steps": LONG, "engine.zero_stage": stage, "batch.micro_windows": 1}
        for stage in (2, 0)
    )
    on_4 = [
        case("long/4 ranks, ZeRO 2", "long", stage_2, stop_after=38),
        case("long/4 ranks, ZeRO 0", "long", stage_0),
    ]
    return run_cases({2: on_2, 1: on_1, 4: on_4}, root / "starts"), root / "runs"


def stored(root, name):
    """What identifies every byte of a run's last checkpoint."""
    place = LocalPlace(root / name / "checkpoints")
    manifest = load_manifest(place, place.list_steps()[0])
    return manifest.step, manifest.optimizer, manifest.state, manifest.files


@pytest.mark.parametrize("name", [*SAME, *OFFLOAD])
def test_the_same_topology_resumes_bit_by_bit(attempts, name):
    saw, root = attempts
    whole = saw[f"{name}/{WHOLE}"]
    assert [r.step for r in saw[f"{name}/first"]] == [1, 2, 3]
    assert saw[f"{name}/first"] + saw[f"{name}/second"] == whole  # losses and norms to the last bit
    # And what it saved: weights, both moments of Adam, counters, the stream's place.
    assert stored(root, f"{name}-{HALVES}") == stored(root, f"{name}-{WHOLE}")
    assert whole[-1].loss < whole[0].loss


def test_dropout_is_on_and_differs_between_steps(attempts):
    saw, _ = attempts
    plain, dropped = saw[f"fp32-zero2/{WHOLE}"], saw[f"dropout-fp32-zero2/{WHOLE}"]
    assert all(
        a.digest == b.digest and a.loss != b.loss for a, b in zip(plain, dropped, strict=True)
    )


@pytest.mark.parametrize("name", ["to-offload", "from-offload"])
def test_an_offloaded_optimizer_and_a_plain_one_resume_each_other(attempts, name):
    saw, _ = attempts
    halves = saw[f"{name}/first"] + saw[f"{name}/second"]
    # On a CPU both are the same fused AdamW on the same fp32 masters.
    assert halves == saw[f"{name}/{WHOLE}"]


def test_other_ranks_and_stages_end_within_a_thousandth_after_50_steps(attempts):
    saw, _ = attempts
    parts = ("2 ranks, ZeRO 1", "1 rank, ZeRO 3", "4 ranks, ZeRO 2", "4 ranks, ZeRO 0")
    joined = [report for part in parts for report in saw[f"long/{part}"]]
    whole = saw[f"long/{WHOLE}"]
    assert [report.step for report in joined] == list(range(1, LONG + 1))
    for report, other in zip(joined, whole, strict=True):
        assert (report.first_n, report.targets, report.digest) == (
            other.first_n,
            other.targets,
            other.digest,
        )
        # The promise; measured here: 4e-7.
        assert abs(report.loss - other.loss) < 1e-3
    assert whole[-1].loss < whole[0].loss - 0.5


def test_an_engine_of_rejected_checkpoints_is_gone_before_a_new_run_builds_its_own(monkeypatch):
    alive = []

    class SelfReferring:
        def __init__(self):
            self.itself = self
            alive.append(self)

    class Rejecting(list):
        def reject(self, found, why):
            alive[:] = [weakref.ref(engine) for engine in alive]

    def open_at(setting, start, engine, stack):
        if start.is_new:
            return [engine, *(reference() for reference in alive)]
        return SimpleNamespace(engine=SelfReferring())

    monkeypatch.setattr(assemble, "_read_start", lambda found: assemble.Start(is_new=False))
    monkeypatch.setattr(assemble, "_open_at", open_at)
    monkeypatch.setattr(assemble, "_load", lambda found, run: ["not what was saved"])
    nothing: Any = None
    search: Any = Rejecting([object()])
    run, found = assemble._resume(nothing, search, None, ExitStack())
    assert (run, found) == ([None, None], None)
