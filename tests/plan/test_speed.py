import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config.load import parse_config
from lmscale.config.model import DecoderConfig
from lmscale.plan.devices import find_device, plan_machine
from lmscale.plan.efficiency import EFFICIENCY
from lmscale.plan.products import Product, product_cost
from lmscale.plan.speed import plan_step


def build(*overrides):
    return parse_config("run: {name: planned}", overrides)


def machine(name="h100", nodes=1, devices=1):
    return plan_machine(find_device(name), nodes=nodes, devices_per_node=devices)


SIZE = st.integers(1, 20_000)


@given(SIZE, SIZE, SIZE, st.sampled_from(["h100", "a100", "mi300x", "cpu"]))
def test_no_product_is_faster_than_the_device(m, n, k, name):
    device, product = find_device(name), Product(m, n, k)
    cost = product_cost(product, "fp32", device, EFFICIENCY.sustained)
    assert cost.seconds >= product.flops / (device.peak("fp32") or 0)
    assert cost.seconds >= 4 * (m * k + k * n + m * n) / device.memory_bytes_per_second


def test_a_tile_more_than_fills_a_wave_costs_another_wave():
    device = find_device("a100")  # 108 multiprocessors
    full = Product(128 * 108, 256, 4096)
    over = Product(128 * 109, 256, 4096)
    costs = [product_cost(each, "bf16", device, 1.0).seconds for each in (full, over)]
    assert costs[1] / costs[0] > 1.3  # one of another size would waste less of the second


@settings(max_examples=30)
@given(
    layers=st.integers(1, 8),
    heads=st.integers(1, 16),
    length=st.sampled_from([64, 512, 2048]),
    micro=st.sampled_from([1, 2, 8]),
    stage=st.integers(0, 3),
    ranks=st.sampled_from([1, 4, 16]),
    compiled=st.booleans(),
)
def test_a_step_is_slower_than_its_flops_and_its_phases_add_up(
    layers, heads, length, micro, stage, ranks, compiled
):
    config = build(
        f"model={{layers: {layers}, width: {64 * heads}, heads: {heads}}}",
        f"stream.sequence_length={length}",
        f"batch={{global_windows: {micro * ranks * 2}, micro_windows: {micro}}}",
        f"engine={{zero_stage: {stage}, compile: {str(compiled).lower()}}}",
    )
    step = plan_step(config, machine(nodes=max(1, ranks // 8), devices=min(8, ranks)))
    assert step.seconds == pytest.approx(sum(phase.seconds for phase in step.phases))
    assert step.mfu_causal and step.mfu_dense
    assert 0 < step.mfu_causal <= step.mfu_dense < 1
    assert step.tokens == micro * ranks * 2 * length
    assert (step.exchanged_bytes > 0) and all(phase.seconds > 0 for phase in step.phases)
    assert ("links" in step.phases[1].spent) == (ranks > 1)


def test_a_small_eager_model_waits_for_its_host_and_a_compiled_one_less():
    small = ("model={layers: 12, width: 64, heads: 2}", "batch.micro_windows=1")
    eager, compiled = (
        plan_step(build(*small, f"engine.compile={flag}"), machine()) for flag in ("false", "true")
    )
    assert eager.phases[0].bound_by == "launches"
    assert compiled.seconds < 0.8 * eager.seconds


def test_what_is_computed_again_costs_a_forward_pass_of_its_blocks():
    none, every = (
        plan_step(build(f"model.activation_checkpoint_every={n}"), machine()) for n in (0, 1)
    )
    assert none.recomputed_seconds == 0
    again = every.seconds - none.seconds
    assert again == pytest.approx(every.recomputed_seconds, rel=1e-6)
    assert 0.7 * none.phases[0].seconds < again < none.phases[0].seconds


def test_stage_2_sends_its_gradients_with_every_micro_batch_and_stage_1_once():
    one, two = (
        plan_step(
            build(f"engine.zero_stage={stage}", "batch={global_windows: 64, micro_windows: 1}"),
            machine(devices=8),
        )
        for stage in (1, 2)
    )
    assert two.phases[1].spent["links"] == pytest.approx(8 * one.phases[1].spent["links"])


def test_auto_is_the_precision_that_the_device_has():
    config = build()
    assert config.engine.precision == "auto"
    in_bf16, in_fp32 = (plan_step(config, machine(name)) for name in ("a100", "v100"))
    assert in_fp32.seconds > 5 * in_bf16.seconds


class OwnConfig(DecoderConfig):
    """A family of an installed package that names its ``planning``: the decoder's."""


def test_a_family_of_ones_own_is_planned_by_its_operators_alone():
    decoder = build("model={layers: 4, width: 256, heads: 4}", "stream.sequence_length=512")
    own = decoder.model_copy(update={"model": OwnConfig(**decoder.model.model_dump())})
    known, planned = plan_step(decoder, machine()), plan_step(own, machine())
    assert planned.seconds == known.seconds
    assert known.mfu_causal and planned.mfu_causal and known.mfu_dense
    assert 0.95 * known.mfu_causal < planned.mfu_causal < 1.05 * known.mfu_dense
