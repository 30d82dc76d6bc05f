"""Runs of every optimizer but AdamW, stopped and gone on with: Muon and SGD at another ZeRO stage
and world size, Adam and Lion in bf16 as they were.
"""

from pathlib import Path

import pytest
import torch
from rank_cases import Case, run_cases

from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

STEPS, STOP_AFTER = 6, 3
KINDS = ("muon", "sgd")
IN_BF16 = ("adam", "lion")
RATES = {"muon": 3e-3, "sgd": 0.5, "adam": 3e-3, "lion": 1e-3}


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """Case's name → its reports; and the folder of their runs."""
    root = tmp_path_factory.mktemp("optimizers")

    def case(name, folder, kind, *, stage, micro, stop_after=None):
        return Case(
            name=name,
            data=str(tiny_data),
            folder=str(root / folder),
            overrides={
                "engine.optimizer.kind": kind,
                "engine.optimizer.lr": RATES[kind],
                "engine.precision": "bf16" if kind in IN_BF16 else "fp32",
                "engine.zero_stage": stage,
                "batch.global_windows": 8,
                "batch.micro_windows": micro,
                "train.steps": STEPS,
                "checkpoint.every_steps": STEPS,
                # Their untied head stays with AdamW.
                "model.tied_embeddings": False,
            },
            stop_after=stop_after,
        )

    starts = {
        2: [case(f"{kind} whole", f"{kind}-whole", kind, stage=1, micro=4) for kind in KINDS]
        + [
            case(f"{kind} begun", f"{kind}-cut", kind, stage=2, micro=2, stop_after=STOP_AFTER)
            for kind in KINDS
        ]
        + [
            case(f"{kind} {part}", f"{kind}-{folder}", kind, stage=1, micro=4, stop_after=stop)
            for kind in IN_BF16
            for part, folder, stop in (
                ("whole", "whole", None),
                ("begun", "cut", STOP_AFTER),
                ("ended", "cut", None),
            )
        ],
        4: [case(f"{kind} ended", f"{kind}-cut", kind, stage=3, micro=1) for kind in KINDS],
    }
    return run_cases(starts, root / "starts"), root


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_at_another_stage_and_world_size_as_if_never_stopped(trained, kind):
    reports, root = trained
    cut = [*reports[f"{kind} begun"], *reports[f"{kind} ended"]]
    whole = reports[f"{kind} whole"]
    assert [report.step for report in cut] == [report.step for report in whole]
    for report, expected in zip(cut, whole, strict=True):
        assert report.digest == expected.digest
        assert report.loss == pytest.approx(expected.loss, rel=1e-6)
        assert report.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    assert whole[-1].loss < whole[0].loss - 0.05
    weights, expected_weights = (
        load_weights(LocalPlace(Path(root / f"{kind}-{name}") / "checkpoints"))
        for name in ("cut", "whole")
    )
    for name, weight in weights.items():
        # fp32's rounding in sums of another order, as in test_engine_equal_weights.py.
        assert float((weight - expected_weights[name]).abs().max()) < 6e-6


@pytest.mark.parametrize("kind", IN_BF16)
def test_a_run_in_bf16_goes_on_with_the_same_bits(trained, kind):
    reports, root = trained
    assert [*reports[f"{kind} begun"], *reports[f"{kind} ended"]] == reports[f"{kind} whole"]
    weights, expected_weights = (
        load_weights(LocalPlace(Path(root / f"{kind}-{name}") / "checkpoints"))
        for name in ("cut", "whole")
    )
    for name, weight in weights.items():
        assert torch.equal(weight, expected_weights[name])
