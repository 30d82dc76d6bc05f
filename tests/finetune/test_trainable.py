"""Exactly the parameters that a person names are trained, of every family."""

import re
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config.finetune import TrainableConfig
from lmscale.config.model import FAMILIES, Sizes
from lmscale.errors import ConfigError
from lmscale.finetune.trainable import find_frozen
from lmscale.model.family import build_model_on
from lmscale.train.initial import freeze_parameters

SIZES = Sizes(vocab_size=8, max_positions=8, sequence_length=8)
SMALL = {"width": 8, "heads": 2}
SHAPES = {
    "llama": {"family": "decoder", **SMALL},
    "gpt2": {"family": "decoder", **SMALL, "positions": "learned", "tied_embeddings": True},
    "bert": {"family": "encoder", **SMALL, "token_types": 2, "pooler": True, "text_classes": 2},
    "modernbert": {
        "family": "encoder", **SMALL, "positions": "rope", "norm_first": True, "token_classes": 3,
    },
    "t5": {"family": "encoder_decoder", **SMALL},
    "bart": {
        "family": "encoder_decoder", **SMALL, "positions": "learned", "norm_first": False,
        "tied_embeddings": False,
    },
    "lstm": {"family": "recurrent", "width": 8},
    "tied lstm": {"family": "recurrent", "width": 8, "tied_embeddings": True},
}  # fmt: skip
TASK = re.compile(r"(pooler|classifier|token_classifier)\.")


@cache
def model_of(shape: str, layers: int):
    tree = SHAPES[shape] | {"layers": layers}
    section = FAMILIES.section(tree["family"]).model_validate(tree)
    model = build_model_on(section, SIZES, device=torch.device("meta"), dtype=torch.float32)
    return section, model


def expected(names: list[str], shape: str, layers: int, count: int) -> set[str]:
    """By the words of docs/fine-tuning.md: the task's layers, or the output matrix where there are
    none; of ``top`` the last blocks and the norm behind them.
    """
    has_task = any(map(TASK.match, names))
    last = {
        "encoder_decoder": "decoder.blocks.{}.",
        "recurrent": "_l{}",
    }.get(SHAPES[shape]["family"], "blocks.{}.")
    blocks = [last.format(number) for number in range(layers - count, layers)]
    trained = set()
    for name in names:
        in_block = any(name.startswith(b) or name.endswith(b) for b in blocks)
        is_norm = count and name.startswith(("norm.", "decoder.norm."))
        is_task = TASK.match(name) if has_task else name.startswith("head.")
        if in_block or is_norm or is_task:
            trained.add(name)
    return trained


@settings(deadline=None)  # the first model loads torch
@given(shape=st.sampled_from(sorted(SHAPES)), layers=st.integers(2, 12), data=st.data())
def test_exactly_the_named_layers_are_trained(shape, layers, data):
    count = data.draw(st.integers(0, layers - 1), label="top")
    section, model = model_of(shape, layers)
    names = [name for name, _ in model.named_parameters()]
    has_task = any(map(TASK.match, names))
    trainable = TrainableConfig.model_validate({"top": count} if count else "head")
    if not count and not has_task and section.model_dump()["tied_embeddings"]:
        with pytest.raises(ConfigError, match="no other layer of the task"):
            find_frozen(section, trainable, has_task_layers=False)
        return
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    frozen = find_frozen(section, trainable, has_task_layers=has_task)
    freeze_parameters(model, frozen)  # which refuses a pattern that matches nothing
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == expected(names, shape, layers, count)


def test_all_and_adapters_freeze_nothing_by_name():
    section, _ = model_of("bert", 2)
    for word in ("all", {"lora": {"rank": 4}}):
        assert (
            find_frozen(section, TrainableConfig.model_validate(word), has_task_layers=True) == ()
        )


def test_more_layers_than_there_are_is_told():
    section, _ = model_of("llama", 2)
    with pytest.raises(ConfigError, match="top: 2, and the base has 2 layers"):
        find_frozen(section, TrainableConfig.model_validate({"top": 2}), has_task_layers=False)
