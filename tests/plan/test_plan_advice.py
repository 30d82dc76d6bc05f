"""What the planner would change, and what it says of a limit."""

from __future__ import annotations

from lmscale.config import load_config
from lmscale.plan.advice import advise, describe_limit
from lmscale.plan.devices import find_device, plan_machine
from lmscale.plan.memory import plan_memory
from lmscale.plan.quote import advise_fit, quote_plan

A100 = plan_machine(find_device("a100-80gb"), devices_per_node=8)
GPT2 = load_config("configs/gpt2_124m.yaml", ["engine.precision=bf16"])


def test_the_first_alternative_fits_and_no_other_that_fits_is_faster():
    alternatives = advise(GPT2, A100)
    assert len(alternatives) == 4
    assert all(each.memory.fits for each in alternatives)
    seconds = [each.step.seconds for each in alternatives]
    assert seconds[0] <= 1.01 * min(seconds) and seconds[0] <= alternatives[0].own_seconds
    assert len({each.described for each in alternatives}) == 4


def test_alternatives_train_the_same_model_on_the_same_batches():
    free = {"engine.zero_stage", "engine.offload_optimizer", "batch.micro_windows"}
    for each in advise(GPT2, A100):
        assert each.changes.keys() <= free | {"model.activation_checkpoint_every"}
        assert each.step.tokens == GPT2.batch.global_windows * GPT2.stream.sequence_length


def test_a_limit_is_told_with_figures_and_what_each_way_out_costs():
    told = describe_limit(GPT2, A100, plan_memory(GPT2, A100))
    assert told[0].startswith("activations: 4.9 GB; recompute every second block: ")
    assert told[0].endswith(" % time") or told[0].endswith("% time")


def test_what_fits_only_in_host_memory_is_advised_so():
    small = plan_machine(find_device("a100-40gb"), devices_per_node=2)
    config = load_config("configs/llama_7b.yaml", ["batch.global_windows=64"])
    assert not plan_memory(config, small).fits
    assert "engine.offload_optimizer=true" in advise_fit(config, small)


def test_a_quote_is_one_line():
    (line,) = quote_plan(GPT2, A100)
    assert line.startswith("by the plan a rank holds ") and " tokens/s" in line
