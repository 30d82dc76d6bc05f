"""A run that was stopped and resumed is the run that was not, bit by bit or within rounding.

Three starts of real ranks over gloo do all attempts in process; each attempt opens its run anew.
"""

import weakref
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rank_cases import Case, run_cases
from tiny_run import tiny_config

import lmscale
from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.train import assemble

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

STEPS, STOP = 4, 2
LONG = 50
WHOLE, HALVES = "whole", "halves"
SAME = {  # of the toy, every stage in either precision is test_checkpoint_elastic.py's
    "fp32-zero0": {"engine.zero_stage": 0},
    "bf16-zero0": {"engine.zero_stage": 0, "engine.precision": "bf16"},
    "dropout-bf16-zero1": {
        "model.dropout": 0.2, "engine.zero_stage": 1, "engine.precision": "bf16",
    },
    "dropout-fp32-zero2": {"model.dropout": 0.2, "engine.zero_stage": 2},
    "dropout-bf16-zero3": {
        "model.dropout": 0.2, "engine.zero_stage": 3, "engine.precision": "bf16",
    },
    "offload-bf16-zero3": {
        "engine.zero_stage": 3, "engine.precision": "bf16", "engine.offload_optimizer": True,
        "engine.offload_parameters": True,
    },
}  # fmt: skip
PLAIN = {"engine.zero_stage": 2, "engine.precision": "fp32"}
OFFLOADED = PLAIN | {"engine.offload_optimizer": True}
UNCUT = [*SAME.items(), ("plain", PLAIN)]


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

    def halves(name, overrides, later):
        yield case(f"{name}/first", f"{name}-{HALVES}", overrides, stop_after=STOP)
        yield case(f"{name}/second", f"{name}-{HALVES}", later)

    on_2 = [case(f"{name}/{WHOLE}", f"{name}-{WHOLE}", overrides) for name, overrides in UNCUT]
    on_2 += [part for name, same in SAME.items() for part in halves(name, same, same)]
    on_2 += [*halves("to-offload", PLAIN, OFFLOADED), *halves("from-offload", OFFLOADED, PLAIN)]
    on_2.sort(key=lambda c: c.overrides["engine.zero_stage"])  # see test_engine_equal_weights.py
    stage_1 = {"train.steps": LONG, "engine.zero_stage": 1, "batch.micro_windows": 6}
    on_2 += [case(f"long/{WHOLE}", f"long-{WHOLE}", stage_1)]
    on_2 += [case("long/2 ranks, ZeRO 1", "long", stage_1, stop_after=13)]
    stage_3 = {"train.steps": LONG, "engine.zero_stage": 3, "batch.micro_windows": 4}
    on_1 = [case("long/1 rank, ZeRO 3", "long", stage_3, stop_after=25)]
    stage_2, stage_0 = ({"train.steps": LONG, "engine.zero_stage": stage} for stage in (2, 0))
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


@pytest.mark.parametrize("name", SAME)
def test_the_same_topology_resumes_bit_by_bit(attempts, name):
    saw, root = attempts
    whole = saw[f"{name}/{WHOLE}"]
    assert [r.step for r in saw[f"{name}/first"]] == [1, 2]
    assert saw[f"{name}/first"] + saw[f"{name}/second"] == whole  # losses and norms to the last bit
    # And what it saved: weights, both moments of Adam, counters, the stream's place.
    assert stored(root, f"{name}-{HALVES}") == stored(root, f"{name}-{WHOLE}")
    assert whole[-1].loss < whole[0].loss


def test_dropout_is_on_and_differs_between_steps(attempts):
    saw, _ = attempts
    plain, dropped = saw[f"plain/{WHOLE}"], saw[f"dropout-fp32-zero2/{WHOLE}"]
    assert all(
        a.digest == b.digest and a.loss != b.loss for a, b in zip(plain, dropped, strict=True)
    )


@pytest.mark.parametrize("name", ["to-offload", "from-offload"])
def test_an_offloaded_optimizer_and_a_plain_one_resume_each_other(attempts, name):
    saw, _ = attempts
    halves = saw[f"{name}/first"] + saw[f"{name}/second"]
    # On a CPU both are the same fused AdamW on the same fp32 masters. The norm of the gradient is
    # summed by other pieces: on an AMD EPYC its last bit differs, and by clipping all that follows.
    for half, whole in zip(halves, saw[f"plain/{WHOLE}"], strict=True):
        near = {key: getattr(whole, key) for key in ("loss", "gradient_norm", "figures")}
        assert replace(half, **near) == whole
        assert half.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-6)
        assert half.figures == pytest.approx(whole.figures, rel=1e-6)


def test_the_loss_of_every_source_is_that_of_its_own_windows_on_any_number_of_ranks(
    attempts, tiny_data, tmp_path
):
    saw, _ = attempts
    names = ["source_loss/a", "source_loss/b"]
    config = tiny_config(tiny_data, tmp_path)
    whole = saw[f"long/{WHOLE}"]
    attempts_of_it = [saw[f"long/{name}"] for name in ("1 rank, ZeRO 3", "4 ranks, ZeRO 0")]
    with lmscale.open_stream(config) as stream:
        for report in (whole[0], *(reports[0] for reports in attempts_of_it)):
            rows = stream.read_rows(report.first_n, config.batch.global_windows)
            sources, _ = stream.mixture.locate(report.first_n, config.batch.global_windows)
            # Of a document's tokens in a window, all but its first one are targets.
            begun = np.bincount(rows.starts // rows.tokens.shape[1], minlength=len(rows.tokens))
            targets = np.bincount(sources, rows.lengths - begun)
            assert [report.counts[name] for name in names] == targets.tolist()
            losses = [report.figures[name] for name in names]
            assert np.average(losses, weights=targets) == pytest.approx(report.loss, rel=1e-6)
            assert abs(losses[0] - losses[1]) > 1e-3
            of_whole = [whole[report.step - 1].figures[name] for name in names]
            assert losses == pytest.approx(of_whole, rel=1e-3)  # as the loss is, see below


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
