"""A whole run: checkpoints as they are written, cost, energy, what a run's own figures change."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import launch, tiny_config, write_tiny_config

from lmscale.config import RunConfig, load_config
from lmscale.config.assets import find_assets
from lmscale.plan.checkpoints import plan_checkpoint
from lmscale.plan.devices import find_device, plan_machine
from lmscale.plan.failures import HOUR, LLAMA_3
from lmscale.plan.memory import plan_memory
from lmscale.plan.own_constants import Constants, count_failures, read_constants
from lmscale.plan.quote import describe_unplanned
from lmscale.plan.run import PUE, RunOptions, plan_run, plan_saves, plan_scales

H100 = find_device("h100-80gb")


def gpt2(**changes) -> RunConfig:
    config = load_config(find_assets("configs") / "gpt2_124m.yaml")
    tree = config.model_dump(mode="json")
    for path, value in changes.items():
        section, key = path.split("__")
        tree[section][key] = value
    return RunConfig.model_validate(tree)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, {"engine.zero_stage": 1}),
        (
            2,
            {
                "engine.zero_stage": 3,
                "engine.optimizer.kind": "adafactor",
                "engine.ema_decay": 0.9,
                "train.freeze": "[embedding.*]",
            },
        ),
        (2, {"engine.zero_stage": 2, "engine.optimizer.kind": "muon"}),
    ],
)
def test_a_checkpoint_is_as_large_as_it_was_planned(
    tiny_data: Path, tmp_path: Path, ranks: int, settings: dict
):
    settings = {"train.steps": 2, "engine.schedule.warmup_steps": 0, **settings}
    path = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, tmp_path / "run")
    assert launch(path, ranks, settings).code == 0
    config = load_config(tmp_path / "run" / "config.yaml")
    folder = tmp_path / "run" / "checkpoints" / "step-000000002"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    written = sum(file["bytes"] for file in manifest["files"])
    assert plan_checkpoint(config, ranks=ranks).bytes == pytest.approx(written, rel=0.01)


def test_a_large_checkpoint_is_twelve_bytes_a_parameter_with_adam():
    checkpoint = plan_checkpoint(gpt2(), ranks=8)
    assert checkpoint.parts["weights"] == 4 * 124_475_904
    assert checkpoint.bytes == pytest.approx(12 * 124_475_904, rel=0.001)


def test_the_checkpoints_that_stay_are_counted():
    few = gpt2(checkpoint__keep_last=2, checkpoint__keep_every_steps=0)
    assert plan_checkpoint(few, ranks=1).kept == 3
    steps, every = few.train.steps, few.checkpoint.every_steps
    many = gpt2(checkpoint__keep_last=2, checkpoint__keep_every_steps=10 * every)
    assert plan_checkpoint(many, ranks=1).kept == 3 + steps // (10 * every)


def test_cost_and_energy_follow_from_the_hours_of_the_devices():
    machine = plan_machine(H100, nodes=4, devices_per_node=8)
    quiet = RunOptions(price=2.0, node_mtbf_seconds=math.inf)
    plan = plan_run(gpt2(train__steps=10_000), machine, step_seconds=0.5, options=quiet)
    assert plan.training_seconds == 5000
    assert plan.simulated.goodput > 0.9
    hours = plan.simulated.wall_seconds[1] / HOUR * 32
    assert plan.device_hours == pytest.approx(hours)
    assert plan.cost == pytest.approx(2.0 * hours)
    assert plan.energy_kwh == pytest.approx(hours * 700 * PUE / 1000)
    assert plan.saves.best_steps == math.inf
    dearer = plan_run(
        gpt2(train__steps=10_000), machine, step_seconds=0.5, options=replace(quiet, pue=2 * PUE)
    )
    assert dearer.energy_kwh == pytest.approx(2 * (plan.energy_kwh or 0))


def test_an_interval_that_loses_steps_is_named_with_a_better_one():
    machine = plan_machine(H100, nodes=512, devices_per_node=8)
    config = gpt2(train__steps=200_000, checkpoint__every_steps=20_000)
    plan = plan_run(config, machine, step_seconds=2.0)
    assert plan.simulated_best is not None
    assert plan.simulated_best.goodput > plan.simulated.goodput + 0.3
    (said,) = [doubt for doubt in plan.doubts if "every_steps" in doubt]
    assert said.startswith("checkpoint.every_steps = 20000: with ")
    assert plan.saves.mtbf_seconds == pytest.approx(LLAMA_3.node_mtbf_seconds / 512)


def test_no_interval_beyond_an_hour_is_advised_where_machines_hardly_fail():
    machine = plan_machine(H100, nodes=1, devices_per_node=8)
    saves = plan_saves(gpt2(), machine, step_seconds=0.2, options=RunOptions())
    assert saves.best_steps * 0.2 < HOUR
    assert saves.advised_steps * 0.2 == pytest.approx(HOUR)
    rare = RunOptions(node_mtbf_seconds=1000 * LLAMA_3.node_mtbf_seconds)
    seldom = plan_saves(gpt2(), machine, step_seconds=0.2, options=rare)
    assert seldom.advised_steps == pytest.approx(seldom.best_steps)


def test_settings_that_the_plan_does_not_know_are_named():
    machine = plan_machine(H100, nodes=1, devices_per_node=8)
    assert not [*describe_unplanned(gpt2(), machine)]
    config = gpt2(engine__compile=True, engine__activation_memory_budget=0.5)
    [told] = describe_unplanned(config, machine)
    assert "engine.activation_memory_budget = 0.5 is not planned" in told


def test_attention_that_is_asked_for_is_planned_as_it_runs():
    machine = plan_machine(H100, nodes=1, devices_per_node=8)
    auto, flex, dense = (
        plan_memory(gpt2(model__attention=kind, stream__mask_documents=True), machine).total_bytes
        for kind in ("auto", "flex", "sdpa")
    )
    assert auto == flex < dense


def test_slow_storage_is_named_where_steps_would_wait_for_it():
    slow = RunOptions(write_bytes_per_second=1e6)
    plan = plan_run(
        gpt2(checkpoint__every_steps=100),
        plan_machine(H100, nodes=1, devices_per_node=8),
        step_seconds=0.5,
        options=slow,
    )
    assert any("give it storage that takes 0.03 GB/s" in doubt for doubt in plan.doubts)


def test_goodput_falls_with_the_scale_and_less_where_saves_are_as_often_as_advised():
    machine = plan_machine(H100, nodes=1, devices_per_node=8)
    scales = plan_scales(gpt2(), machine, step_seconds=2.0, scales=(8, 1024, 16_384))
    assert [scale.devices for scale in scales] == [8, 1024, 16_384]
    assert scales[0].goodput > scales[1].goodput > scales[2].goodput
    assert scales[2].goodput_best > scales[2].goodput


ATTEMPTS = [
    {"event": "start", "time": 0.0, "attempt": 1, "first_step": 0},
    {"event": "progress", "time": 20.0, "attempt": 1, "step": 0, "seconds": {"start": 20.0}},
    {"event": "progress", "time": 120.0, "attempt": 1, "step": 100, "seconds": {"step": 100.0}},
    {"event": "start", "time": 220.0, "attempt": 2, "first_step": 100},
    {"event": "progress", "time": 250.0, "attempt": 2, "step": 100}
    | {"seconds": {"start": 20.0, "load": 10.0}},
    {"event": "end", "time": 350.0, "attempt": 2, "step": 200, "seconds": {"step": 100.0}}
    | {"reason": "SIGTERM"},
    {"event": "start", "time": 400.0, "attempt": 3, "first_step": 200},
    {"event": "end", "time": 430.0, "attempt": 3, "step": 200, "seconds": {"start": 30.0}}
    | {"reason": "RuntimeError"},
]


def test_a_runs_own_figures_count_before_those_that_are_taken_in_general(tmp_path: Path):
    common = {"job": None, "restart": 0, "host": "h", "world_size": 1, "zero_stage": 1}
    rows = [row | (common if row["event"] == "start" else {}) for row in ATTEMPTS]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "attempts.jsonl").write_text("".join(lines))
    metrics = [{"step": n, "time": 1.0, "speed/step_seconds": s} for n, s in ((1, 1.0), (2, 3.0))]
    metrics += [{"step": 3, "time": 1.0, "checkpoint/stopped_seconds": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    assert count_failures(rows) == 2  # the first was killed, the last fell; the second was asked
    found = read_constants(tmp_path)
    assert (found.step_seconds, found.save_seconds, found.commit_seconds) == (2.0, 0.25, None)
    assert found.failures == 2
    assert found.mtbf_seconds is not None and 100 < found.mtbf_seconds < 200
    machine = plan_machine(H100)
    plan = plan_run(gpt2(), machine, step_seconds=9.0, constants=found)
    assert (plan.step_seconds, plan.saves.held_seconds) == (2.0, 0.25)
    assert plan.saves.mtbf_seconds == found.mtbf_seconds
    assert any("the run hardly gets on" in doubt for doubt in plan.doubts)
    assert read_constants(tmp_path / "none") == Constants()


def test_losses_are_told_of_models_that_predict_the_next_token_alone(tiny_data: Path):
    machine = plan_machine(H100)
    plan = plan_run(gpt2(), machine, step_seconds=1.0)
    assert [each.law for each in plan.losses][0] == "Chinchilla"
    assert plan.tokens_per_parameter == pytest.approx(plan.tokens / 124_475_904)
    masked = load_config(find_assets("configs") / "bert_base.yaml")
    assert plan_run(masked, machine, step_seconds=1.0).losses == ()


def test_the_text_of_a_run_is_counted_where_its_shards_are(tiny_data: Path, tmp_path: Path):
    config = tiny_config(tiny_data, tmp_path / "run", {"train.steps": 4000})
    plan = plan_run(config, plan_machine(H100), step_seconds=0.1)
    assert all(source.epochs for source in plan.sources)
    assert any("stream.sources.a is read" in doubt for doubt in plan.doubts)
