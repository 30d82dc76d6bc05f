"""engine.precision: auto is bf16 where all devices compute in it, and fp32 elsewhere."""

import pytest
import torch

from lmscale.ranks import precision as precision_module
from lmscale.ranks.precision import agree_precision, fit_cpu, fit_gpu, fit_precision

UNITS, NONE = {"fp32": 180.0, "bf16": 870.0}, {"fp32": 30.0, "bf16": 4.0}


@pytest.mark.parametrize(("rates", "precision"), [(UNITS, "bf16"), (NONE, "fp32")])
def test_a_cpu_computes_in_what_its_products_are_faster_in_and_both_rates_are_told(
    rates, precision
):
    fitting = fit_cpu(rates)
    assert fitting.precision == precision
    assert f"{rates['bf16']:.1f} GFLOP/s in bf16 and {rates['fp32']:.1f} in fp32" in fitting.reason


def test_a_gpu_without_bf16_takes_fp32_and_is_told_to_have_fp16():
    assert fit_gpu("NVIDIA H100", True).precision == "bf16"
    old = fit_gpu("Tesla T4", False)
    assert old.precision == "fp32" and "Tesla T4" in old.reason and "fp16" in old.reason


@pytest.mark.parametrize(
    ("of_ranks", "decides"), [("bf16 bf16", 0), ("bf16 fp32 bf16", 1), ("fp32 bf16", 0)]
)
def test_a_rank_without_bf16_decides_for_all(monkeypatch, of_ranks, decides):
    found = [[name, f"rank {rank}"] for rank, name in enumerate(of_ranks.split())]
    monkeypatch.setattr(precision_module, "gather_json", lambda own: found)
    assert agree_precision(torch.device("cpu")) == tuple(found[decides])


def test_this_cpu_is_measured():
    fitting = fit_precision(torch.device("cpu"))
    assert fitting.precision in ("bf16", "fp32") and "GFLOP/s" in fitting.reason
