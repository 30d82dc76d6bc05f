"""What the planner says a rank holds is what DeepSpeed and torch hold, at every stage."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
from forked_ranks import run_on_ranks

from lmscale.config import RunConfig, load_config
from lmscale.config.data import plan_batches
from lmscale.config.deepspeed_config import render_deepspeed_config
from lmscale.config.training import EngineConfig
from lmscale.plan.devices import Machine, find_device, plan_machine
from lmscale.plan.memory import check_fits, fitting_micro_windows, plan_memory
from lmscale.plan.states import zero_settings
from lmscale.ranks.ranks import Ranks

H100 = plan_machine(find_device("h100-80gb"), nodes=1, devices_per_node=8)
OF_PROCESS = ("process", "loader", "save's copy", "batch")
# Stage 3 last: it leaves its own linear layers to all later models of the process.
CASES = [
    {"zero_stage": 0, "precision": "bf16", "optimizer": {"kind": "lion"}},
    {"zero_stage": 1, "precision": "fp32"},
    {"zero_stage": 1, "precision": "bf16"},
    {"zero_stage": 2, "precision": "bf16", "ema_decay": 0.9, "keep_zeros": True},
    {"zero_stage": 3, "precision": "bf16"},
]


def build(engine: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "held", "allow_faults": True, "init_from": "unread"},
            "stream": {"sequence_length": 64},
            "tokenizer": {"vocab_size": 1024},
            "model": {"layers": 4, "width": 128, "heads": 4},
            "batch": {"global_windows": 8, "micro_windows": 2},
            "engine": engine,
        }
    )


def measure(ranks: Ranks) -> list[int]:
    """The most bytes of tensors in the second step of each case."""
    import torch
    import torch._dynamo  # which may not be loaded among DeepSpeed's own tensors (stage 3)
    from traced import LiveBytes, build_arrays

    from lmscale.ranks.mesh import plan_mesh
    from lmscale.train.initial import build_run_engine

    most, device = [], torch.device("cpu")
    for case in CASES:
        config = build(case)
        plan = config.batch.plan(ranks.world_size)
        with LiveBytes() as bytes_:
            engine = build_run_engine(config, plan, plan_mesh(ranks), device, fill=True)
            arrays = [build_arrays(config, plan.micro_windows) for _ in range(plan.accumulation)]

            def score(each: Any, engine: Any = engine) -> torch.Tensor:
                return engine(**each).terms().sum()

            for _ in range(2):
                gc.collect()
                bytes_.most = bytes_.live
                engine.accumulate([lambda each=each: score(each) for each in arrays], targets=100)
                engine.update(learning_rate=1e-3)
            most.append(bytes_.most)
            del engine
    return most


@pytest.mark.ranks
@pytest.mark.slow
def test_a_rank_holds_what_its_engine_holds(tmp_path):
    measured, _ = run_on_ranks(measure, 2, tmp_path)
    machine = plan_machine(find_device("cpu"), devices_per_node=2)
    ratios = {}
    for case, nbytes in zip(CASES, measured, strict=True):
        parts = plan_memory(build(case), machine).components
        planned = sum(size for name, size in parts.items() if name not in OF_PROCESS)
        ratios[str(case)] = planned / nbytes
    assert {k: r for k, r in ratios.items() if not 0.95 < r < 1.06} == {}, ratios


def test_the_keys_that_memory_depends_on_are_those_that_deepspeed_is_given():
    engine = EngineConfig(zero_stage=2, deepspeed={"zero_optimization": {"overlap_comm": True}})
    plan = plan_batches(global_windows=8, micro_windows=2, data_ranks=2)
    for own in (EngineConfig(zero_stage=3), engine):
        for elements in (5_000, 10**9):
            given = render_deepspeed_config(own, plan=plan, num_parameters=elements)
            settings = zero_settings(own, num_parameters=elements)
            zero = given["zero_optimization"]
            assert settings == {name: int(zero[name] or 0) for name in settings}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_more_ranks_never_need_more_memory_each(stage):
    config = load_config("configs/llama_7b.yaml", [f"engine.zero_stage={stage}"])
    device, totals = find_device("h200"), []
    for nodes in (1, 2, 4, 8):
        machine = plan_machine(device, nodes=nodes, devices_per_node=8)
        totals.append(plan_memory(config, machine, micro_windows=1).total_bytes)
    assert totals == sorted(totals, reverse=True)


def test_recomputing_more_blocks_holds_fewer_activations():
    def activations(every: int) -> int:
        change = f"model.activation_checkpoint_every={every}"
        config = load_config("configs/llama_7b.yaml", [change])
        return plan_memory(config, H100).components["activations"]

    assert activations(1) < activations(2) < activations(4) < activations(0)


def test_the_fitting_micro_batch_is_the_largest_that_fits():
    config = load_config("configs/llama_7b.yaml", ["batch.global_windows=256"])
    most = fitting_micro_windows(config, H100)
    assert plan_memory(config, H100, micro_windows=most).fits
    assert not plan_memory(config, H100, micro_windows=2 * most).fits or most == 32


def test_what_cannot_fit_is_told_with_its_largest_parts():
    config = load_config("configs/llama_70b.yaml", ["engine.zero_stage=1"])
    told = check_fits(config, H100)
    assert told is not None and "it needs" in told and "weights 138.0 GB" in told, told
    assert check_fits(load_config("configs/gpt2_124m.yaml"), H100) is None


def test_offloaded_states_are_the_host_s(monkeypatch):
    def plan(machine: Machine, *changes: str) -> Any:
        return plan_memory(load_config("configs/llama_7b.yaml", changes), machine)

    here, there = plan(H100), plan(H100, "engine.offload_optimizer=true")
    moved = sum(here.components[name] for name in ("masters", "optimizer"))
    assert there.host["offloaded states"] == moved
    assert "optimizer" not in there.components and math.isclose(
        sum(here.host.values()) + moved,
        sum(there.host.values()) - there.host.get("offloaded gradients", 0),
    )
