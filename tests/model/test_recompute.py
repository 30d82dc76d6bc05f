"""Blocks that are computed again in the backward pass: what is kept of them, and the same bits."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from family_steps import build_scored, configure, micro_batches
from torch.utils._python_dispatch import TorchDispatchMode

from lmscale.config.load import parse_config
from lmscale.errors import ConfigError
from lmscale.model.recompute import set_memory_budget
from lmscale.objective.scores import to_device

PRODUCTS, ATTENTION = (
    ("aten.mm", "aten.addmm"),
    ("aten._scaled_dot_product_flash_attention_for_cpu",),
)


class Counting(TorchDispatchMode):
    """How often each operation ran."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[".".join(str(func).split(".")[:2])] += 1
        return func(*args, **(kwargs or {}))

    def of(self, names):
        return sum(self.counts[name] for name in names)


def do_step(config, micro):
    """The gradients of a micro-batch, and what ran in its backward pass."""
    scoring = build_scored(config)
    loss = scoring(**to_device(micro.arrays, torch.device("cpu"))).terms().sum()
    with Counting() as counting:
        loss.backward()
    return [p.grad for p in scoring.parameters() if p.grad is not None], counting


def assert_same_bits(ours, theirs):
    assert len(ours) == len(theirs) > 0
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("case", ["llama", "masked", "t5", "transformer_xl"])
def test_what_is_kept_of_a_block_is_not_computed_again_and_no_bit_changes(
    case, tiny_data, tmp_path
):
    plain = configure(case, tiny_data, tmp_path, **{"model.activation_checkpoint_every": 0})
    (micro,) = micro_batches(plain, 1)
    expected, without = do_step(plain, micro)
    again = {}
    for saves in ("nothing", "attention", "products"):
        settings = {"activation_checkpoint_every": 1, "activation_checkpoint_saves": saves}
        chosen = {f"model.{name}": value for name, value in settings.items()}
        gradients, counting = do_step(configure(case, tiny_data, tmp_path, **chosen), micro)
        assert_same_bits(gradients, expected)
        again[saves] = [counting.of(each) - without.of(each) for each in (PRODUCTS, ATTENTION)]
    products, attentions = again["nothing"]
    assert products > 0 and attentions > 0
    assert again["attention"] == [products, 0]
    assert again["products"] == [0, 0]


def weigh(sizes, tensor):
    sizes.append(tensor.nbytes)
    return tensor


@pytest.fixture
def memory_budget():
    yield set_memory_budget
    set_memory_budget(1.0)


def test_a_memory_budget_keeps_less_of_compiled_blocks_and_changes_no_bit(
    tiny_data, tmp_path, memory_budget
):
    config = configure("llama", tiny_data, tmp_path)
    (micro,) = micro_batches(config, 1)
    kept, gradients = {}, {}
    for budget in (1.0, 0.0):
        memory_budget(budget)
        torch._dynamo.reset()
        scoring = build_scored(config)
        model: Any = scoring.model
        for block in model.blocks:
            block.compile(backend="aot_eager")
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(weigh, sizes), lambda x: x):
            loss = scoring(**to_device(micro.arrays, torch.device("cpu"))).terms().sum()
        loss.backward()
        kept[budget] = sum(sizes)
        gradients[budget] = [p.grad for p in scoring.parameters() if p.grad is not None]
    assert kept[0.0] < 0.8 * kept[1.0]
    assert_same_bits(gradients[0.0], gradients[1.0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.activation_checkpoint_saves=attention"], "no block is recomputed: set"),
        (
            [
                "model.activation_checkpoint_saves=products",
                "model.activation_checkpoint_every=1",
                "engine.compile=true",
            ],
            "set engine.activation_memory_budget, such as 0.5",
        ),
        (["engine.activation_memory_budget=0.5"], "is for compiled blocks: set compile: true"),
        (
            [
                "engine.activation_memory_budget=0.5",
                "engine.compile=true",
                "model.activation_checkpoint_every=2",
            ],
            "Leave one of them out",
        ),
    ],
)
def test_ways_to_recompute_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(ConfigError) as caught:
        parse_config("run: {name: x}", settings, name="x.yaml")
    assert words in str(caught.value)
