"""What DeepSpeed is told is held against what it declares itself: no default is left to it."""

import pytest
import torch
from pydantic import BaseModel

from lmscale.config import load_config
from lmscale.config.data import plan_batches
from lmscale.config.deepspeed_config import MAX_BUCKET_ELEMENTS, RESERVED, render_deepspeed_config
from lmscale.config.training import EngineConfig
from lmscale.engine import build
from lmscale.engine.build import check_precision
from lmscale.errors import ConfigError

PLAN = plan_batches(global_windows=48, micro_windows=4, data_ranks=3)

# Old spellings, which DeepSpeed marks as deprecated and maps to new ones.
DEPRECATED = {
    "cpu_offload_param",
    "cpu_offload_use_pin_memory",
    "cpu_offload",
    "stage3_gather_fp16_weights_on_model_save",
}
# Given at all, it prints a warning on every rank when the model has no such module.
LEFT_OUT = {"leaf_module"}


def render(num_parameters=10_000, **settings):
    return render_deepspeed_config(
        EngineConfig(**settings), plan=PLAN, num_parameters=num_parameters
    )


@pytest.fixture(scope="module")
def deepspeed():
    from lmscale.engine.build import prepare_deepspeed

    return prepare_deepspeed(torch.device("cpu"))


def declared_keys(model: type[BaseModel]) -> set[str]:
    """The keys by which a configuration names the model's fields."""
    return {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_key_that_deepspeed_declares_is_spelt_and_no_other(deepspeed, stage):
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    mapping = render(zero_stage=stage)
    zero = mapping["zero_optimization"]
    assert set(zero) == declared_keys(DeepSpeedZeroConfig) - DEPRECATED - LEFT_OUT
    assert set(mapping["bf16"]) == declared_keys(DeepSpeedBF16Config)
    assert set(mapping["fp16"]) == declared_keys(DeepSpeedFP16Config)
    offloaded = render(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    zero = offloaded["zero_optimization"]
    assert set(zero["offload_optimizer"]) == declared_keys(DeepSpeedZeroOffloadOptimizerConfig)
    assert set(zero["offload_param"]) == declared_keys(DeepSpeedZeroOffloadParamConfig)


def test_the_keys_left_out_are_those_that_deepspeed_calls_deprecated(deepspeed):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    marked = {
        name
        for name, field in DeepSpeedZeroConfig.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("deprecated")
    }
    assert marked == DEPRECATED


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 0},
        {"zero_stage": 1, "offload_optimizer": True},
        {"zero_stage": 2},
        {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
    ],
)
def test_deepspeed_itself_accepts_the_mapping_and_reads_what_was_meant(
    deepspeed, precision, settings
):
    plan = plan_batches(global_windows=16, micro_windows=4, data_ranks=1)
    engine = EngineConfig(precision=precision, **settings)
    mapping = render_deepspeed_config(engine, plan=plan, num_parameters=10_000)
    read = deepspeed.DeepSpeedConfig(mapping)
    assert read.zero_config.stage == settings["zero_stage"]
    assert read.bfloat16_config.enabled == (precision == "bf16")
    assert read.float16_config.enabled == (precision == "fp16")
    assert read.gradient_clipping == 1.0
    assert read.gradient_allreduce_op == "mean"  # Engine.accumulate multiplies by the world size
    assert read.gradient_accumulation_steps == 4
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu) == (16, 4)
    assert read.float16_config.loss_scale == 0  # dynamic
    assert (read.zero_config.offload_optimizer is None) == (not engine.offload_optimizer)


def test_the_loss_scale_of_fp16_is_the_configured_one():
    scale = {"initial_power": 12, "window": 50, "hysteresis": 3, "minimum": 4}
    fp16 = render(precision="fp16", loss_scale=scale)["fp16"]
    assert fp16["enabled"] and not render(precision="fp16")["bf16"]["enabled"]
    assert (fp16["initial_scale_power"], fp16["loss_scale_window"]) == (12, 50)
    assert (fp16["hysteresis"], fp16["min_loss_scale"]) == (3, 4)


def test_the_batch_is_the_plans():
    mapping = render()
    assert mapping["train_batch_size"] == 48
    assert mapping["train_micro_batch_size_per_gpu"] == 4
    assert mapping["gradient_accumulation_steps"] == 4


@pytest.mark.parametrize(
    ("num_parameters", "bucket"),
    [(1, 1024), (1024, 1024), (1025, 2048), (10**12, MAX_BUCKET_ELEMENTS)],
)
def test_buckets_are_no_larger_than_the_model_and_bounded(num_parameters, bucket):
    zero = render(num_parameters)["zero_optimization"]
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket


def nest(path: str, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("path", RESERVED)
def test_what_lmscale_sets_itself_cannot_be_overridden(path):
    with pytest.raises(ConfigError) as caught:
        render(deepspeed=nest(path, 1))
    assert str(caught.value).startswith(f"engine.deepspeed.{path}: set {RESERVED[path]} instead")


def test_all_refused_overrides_are_told_together():
    override = {"optimizer": {}, "bf16": {"enabled": True}, "gradient_clipping": 2}
    with pytest.raises(ConfigError) as caught:
        render(deepspeed=override)
    assert len(caught.value.problems) == 3


def test_a_whole_section_cannot_be_replaced_by_a_value():
    with pytest.raises(ConfigError, match="engine.deepspeed.zero_optimization: give a mapping"):
        render(deepspeed={"zero_optimization": None})


def test_a_key_that_deepspeed_does_not_have_is_refused_with_the_nearest_it_has():
    override = {"zero_optimization": {"overlap_com": False}, "wall_clock": True}
    with pytest.raises(ConfigError) as caught:
        render(deepspeed=override)
    assert list(caught.value.problems) == [
        "engine.deepspeed.zero_optimization.overlap_com: unknown key. Did you mean overlap_comm?",
        "engine.deepspeed.wall_clock: unknown key. Did you mean wall_clock_breakdown?",
    ]


def test_an_override_changes_its_own_key_alone():
    override = {
        "zero_optimization": {"overlap_comm": False},
        "wall_clock_breakdown": True,
        "comms_logger": {"enabled": True},
    }
    plain, changed = render(zero_stage=3), render(zero_stage=3, deepspeed=override)
    assert changed.pop("comms_logger") == {"enabled": True}
    assert changed.pop("wall_clock_breakdown") and not plain.pop("wall_clock_breakdown")
    assert changed["zero_optimization"].pop("overlap_comm") is False
    assert plain["zero_optimization"].pop("overlap_comm") is None
    assert changed == plain


def test_fp16_on_a_cpu_is_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match=r"no fp16 on a CPU.*--set engine.precision=bf16"):
        check_precision(EngineConfig(precision="fp16"), torch.device("cpu"))
    for precision in ("bf16", "fp32"):
        check_precision(EngineConfig(precision=precision), torch.device("cpu"))


def test_a_key_that_deepspeed_would_ignore_is_refused_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        render(deepspeed={"prescale_gradient": True, "zero_optimization": {"overlap_com": True}})
    assert "engine.deepspeed.prescale_gradient: unknown key. Did you mean prescale_gradients?" in (
        caught.value.problems
    )
    assert "Did you mean overlap_comm?" in str(caught.value)


def test_a_section_that_looks_into_deepspeed_may_be_added():
    assert render(deepspeed={"comms_logger": {"enabled": True}})["comms_logger"]["enabled"]


@pytest.mark.parametrize(
    "override",
    [
        {"zero_optimization": {"reduce_bucket_size": -1}},
        {"zero_optimization": {"sub_group_size": 0.5}},
        {"zero_optimization": {"overlap_comm": "perhaps"}},
    ],
)
def test_what_deepspeed_does_not_take_of_an_override_is_the_users_mistake(deepspeed, override):
    plan = plan_batches(global_windows=16, micro_windows=4, data_ranks=1)
    engine = EngineConfig(deepspeed=override)
    (key,) = override["zero_optimization"]
    with pytest.raises(ConfigError, match="engine.deepspeed: DeepSpeed refuses it") as caught:
        build._render_checked(engine, plan, num_parameters=10_000)
    assert key in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("zero_optimization.overlap_comm: true", "engine.deepspeed.zero_optimization.overlap_comm"),
        ("zero_optimisation: {overlap_comm: true}", "Did you mean zero_optimization?"),
        ("gradient_clipping: 1.0", "set engine.optimizer.clip_norm instead"),
    ],
)
def test_a_key_that_deepspeed_would_not_read_is_told_with_the_rest_of_the_file(
    tmp_path, override, message
):
    path = tmp_path / "run.yaml"
    path.write_text(f"run: {{name: a}}\nengine: {{deepspeed: {{{override}}}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in "\n".join(caught.value.problems)
