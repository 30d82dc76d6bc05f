"""Runs of every optimizer but AdamW, stopped and gone on with: Adafactor, Muon and SGD at another
ZeRO stage and world size, Adafactor, Adam and Lion in bf16 as they were.
"""

from pathlib import Path

import pytest
import torch
from rank_cases import Case, run_cases

from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

STEPS, STOP_AFTER = 6, 3
KINDS = ("adafactor", "muon", "sgd")
IN_BF16 = ("adafactor", "adam", "lion")
RATES = {"adafactor": 0.05, "muon": 3e-3, "sgd": 0.5, "adam": 3e-3, "lion": 1e-3}


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """Case's name → its reports; and the folder of their runs."""
    root = tmp_path_factory.mktemp("optimizers")

    def case(name, folder, kind, *, stage, micro, stop_after=None, precision="fp32"):
        return Case(
            name=name,
            data=str(tiny_data),
            folder=str(root / f"{folder}-{precision}"),
            overrides={
                "engine.optimizer.kind": kind,
                "engine.optimizer.lr": RATES[kind],
                "engine.precision": precision,
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
            case(
                f"{kind} {part} in bf16",
                f"{kind}-{folder}",
                kind,
                stage=1,
                micro=4,
                stop_after=stop,
                precision="bf16",
            )
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
        load_weights(LocalPlace(Path(root / f"{kind}-{name}-fp32") / "checkpoints"))
        for name in ("cut", "whole")
    )
    for name, weight in weights.items():
        # fp32's rounding in sums of another order, as in test_engine_equal_weights.py.
        assert float((weight - expected_weights[name]).abs().max()) < 6e-6


@pytest.mark.parametrize("kind", IN_BF16)
def test_a_run_in_bf16_goes_on_with_the_same_bits(trained, kind):
    reports, root = trained
    cut = [*reports[f"{kind} begun in bf16"], *reports[f"{kind} ended in bf16"]]
    assert cut == reports[f"{kind} whole in bf16"]
    weights, expected_weights = (
        load_weights(LocalPlace(Path(root / f"{kind}-{name}-bf16") / "checkpoints"))
        for name in ("cut", "whole")
    )
    for name, weight in weights.items():
        assert torch.equal(weight, expected_weights[name])
