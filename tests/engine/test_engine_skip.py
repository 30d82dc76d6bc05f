"""A step with an infinity in one rank's gradient changes no bit of the weights or the optimizer."""

import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked_ranks import run_starts
from rank_cases import Case
from torch import nn

from lmscale.engine.engine import clip_gradients, scalar, skipping
from lmscale.engine.muon import Muon

STAGES = {
    f"{precision}-zero{stage}": {"engine.precision": precision, "engine.zero_stage": stage}
    for stage, precision in itertools.product((0, 1, 2, 3), ("fp32", "bf16"))
}
# The optimizers that stage 0 in fp32 runs without DeepSpeed around them, and one more of each.
OTHERS = {
    f"{kind}-zero{stage}": {
        "engine.optimizer.kind": kind,
        "engine.zero_stage": stage,
        "engine.precision": "fp32",
    }
    for kind, stage in itertools.product(("muon", "sgd"), (0, 2))
}
WITHOUT_CLIPPING = {
    "unclipped-zero0": {
        "engine.optimizer.clip_norm": 0.0,
        "engine.zero_stage": 0,
        "engine.precision": "fp32",
    }
}
CASES = dict(
    sorted(
        (STAGES | OTHERS | WITHOUT_CLIPPING).items(), key=lambda item: item[1]["engine.zero_stage"]
    )
)


@pytest.fixture(scope="module")
def saw(tiny_data, tmp_path_factory):
    """Name → for every rank, its rows."""
    root = tmp_path_factory.mktemp("skip")
    cases = [
        Case(
            name=name,
            data=str(tiny_data),
            folder=str(root / name),
            overrides={"train.steps": 3, **overrides},
        )
        for name, overrides in CASES.items()
    ]
    (root / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    run_starts(Path(__file__).parent / "skipping_ranks.py", root, (2,))
    ranks = [json.loads((root / f"saw-0-{rank}.json").read_text()) for rank in (0, 1)]
    return {name: [rank[name] for rank in ranks] for name in CASES}


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_infinite_gradient_changes_nothing_on_any_rank_and_the_next_step_is_as_ever(saw, name):
    for first, bad, after in saw[name]:
        assert [row["is_skipped"] for row in (first, bad, after)] == [False, True, False]
        assert not math.isfinite(bad["gradient_norm"])
        assert bad["changed"] == []
        for row in (first, after):
            assert 0 < row["gradient_norm"] < 1e3
            # Weights that bf16 cannot tell apart from before, and padding, may stay.
            assert len(row["changed"]) > row["kept"] / 2
            assert any(key.startswith("master") for key in row["changed"])
        assert all(row["finite"] and math.isfinite(row["loss"]) for row in (first, bad, after))
    one, other = saw[name]
    assert [row["loss"] for row in one] == [row["loss"] for row in other]


@pytest.mark.ranks
@pytest.mark.slow
def test_adam_does_not_count_a_skipped_step(saw):
    counters = [key for key in saw["fp32-zero0"][0][0]["changed"] if key.startswith("step:")]
    assert counters  # a good step counts
    # The bad one left them as they were: its "changed" is empty, as tested for all cases.


@pytest.mark.ranks
@pytest.mark.slow
def test_where_lmscale_itself_skips_the_host_reads_nothing_in_an_update(saw):
    """DeepSpeed's own optimizers read the norm or an overflow in every step, good or bad."""
    for name, by_rank in saw.items():
        reads = [row["host_reads"] for rows in by_rank for row in rows]
        if name in ("fp32-zero0", "sgd-zero0", "unclipped-zero0"):
            assert set(reads) == {0}, name
        else:
            assert min(reads) >= 1, name


def build(kind):
    parameters = [nn.Parameter(torch.arange(6.0).reshape(2, 3)), nn.Parameter(torch.ones(3))]
    if kind == "sgd":
        return parameters, torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True)
    if kind == "muon":
        group = {"params": parameters, "method": "adamw", "lr": 0.1}
        return parameters, Muon([group], momentum=0.9, betas=(0.9, 0.999), eps=1e-8)
    return parameters, torch.optim.AdamW(parameters, lr=0.1, fused=True)


def fill(parameters, value=1.0):
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)


def state_of(parameters, optimizer):
    copies = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        copies += [value.clone() for _, value in sorted(optimizer.state[parameter].items())]
    return copies


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_optimizer_of_any_kind_is_kept_from_its_step(kind, value):
    parameters, optimizer = build(kind)
    fill(parameters)
    with skipping(optimizer, torch.tensor(False)):
        optimizer.step()
    before = state_of(parameters, optimizer)
    fill(parameters)
    parameters[1].grad[1] = value
    norm = clip_gradients(SimpleNamespace(), parameters, max_norm=1.0)
    with skipping(optimizer, ~torch.isfinite(norm)):
        optimizer.step()
    after = state_of(parameters, optimizer)
    assert len(before) > len(parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    fill(parameters)
    optimizer.step()  # outside of the block nothing is left of it
    assert not any(torch.equal(a, b.detach()) for a, b in zip(before[:2], parameters, strict=True))


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 2.0, 100.0])
def test_clipping_scales_all_gradients_by_their_norm_together(max_norm):
    parameters, _ = build("adamw")
    fill(parameters, 2.0)
    engine = SimpleNamespace(gradient_clipping=lambda: max_norm)
    norm = clip_gradients(engine, parameters, max_norm=max_norm)
    assert norm.item() == pytest.approx(6.0)  # 9 elements of 2
    scale = max_norm / 6 if 0 < max_norm < 6 else 1.0
    for parameter in parameters:
        assert parameter.grad.flatten().tolist() == pytest.approx([2 * scale] * parameter.numel())
    assert engine.gradient_clipping() == 0.0  # DeepSpeed does not do it once more


def test_the_figures_are_one_tensor_whatever_they_were():
    cpu = torch.device("cpu")
    assert scalar(2.5, cpu).tolist() == 2.5
    assert scalar(torch.tensor([1.5]), cpu).tolist() == 1.5
    assert scalar(torch.tensor(True), cpu).tolist() == 1.0
    assert math.isnan(scalar(None, cpu).item())
    assert scalar(1, cpu).dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize("value", [1.0, math.inf])
def test_the_host_does_not_wait_for_a_gpu_to_learn_whether_it_skips(value):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    parameters = [nn.Parameter(torch.ones(4, 3, device="cuda")), nn.Parameter(torch.ones(3).cuda())]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
    fill(parameters)
    optimizer.step()
    before = [parameter.detach().clone() for parameter in parameters]
    fill(parameters)
    parameters[0].grad[1] = value
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm = clip_gradients(SimpleNamespace(), parameters, max_norm=1.0)
        is_skipped = ~torch.isfinite(norm)
        with skipping(optimizer, is_skipped):
            optimizer.step()
        figures = torch.stack([scalar(norm, norm.device), scalar(is_skipped, norm.device)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    norm_seen, skipped_seen = figures.tolist()
    assert (skipped_seen == 1.0) == (not math.isfinite(norm_seen)) == (value == math.inf)
    kept = [torch.equal(a, b.detach()) for a, b in zip(before, parameters, strict=True)]
    assert all(kept) if value == math.inf else not any(kept)
