"""Ids that an objective adds lie above the tokenizer's, and the embedding has rows for them."""

from __future__ import annotations

import pytest

from lmscale.config.data import WindowShape
from lmscale.config.load import validate_tree
from lmscale.config.objective import ObjectiveConfig
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError


class Marked(ObjectiveConfig):
    """An objective that marks places with ids of its own."""

    implementation = "nowhere:NOTHING"
    name: str = "marked"

    @property
    def added_ids(self):
        return ("mask", "separator")

    def window(self, sequence_length):
        return WindowShape(stride=sequence_length - 1, overlap=0)


def config_of(pieces: int, **model) -> RunConfig:
    tree = {
        "run": {"name": "a"},
        "tokenizer": {"vocab_size": pieces},
        "model": model,
        "objective": Marked(),
    }
    return validate_tree(RunConfig, tree, name="a.yaml")


@pytest.mark.parametrize(("pieces", "rows"), [(510, 512), (511, 640), (512, 640)])
def test_the_embedding_covers_the_ids_that_the_objective_adds(pieces, rows):
    config = config_of(pieces)
    assert config.added_ids == {"mask": pieces, "separator": pieces + 1}
    assert config.vocab_size == rows


def test_an_embedding_without_room_for_them_is_refused_by_their_names():
    assert config_of(512, vocab_size=514).vocab_size == 514
    with pytest.raises(ConfigError) as caught:
        config_of(512, vocab_size=513)
    assert (
        "model.vocab_size = 513 is smaller than tokenizer.vocab_size = 512 and the 2 ids (mask, "
        "separator) that the objective adds; leave it out to get the next multiple of 128"
    ) in str(caught.value)


def test_the_windows_are_those_of_the_objective():
    config = config_of(512)
    assert config.window == WindowShape(stride=config.stream.sequence_length - 1, overlap=0)
    causal = RunConfig.model_validate({"run": {"name": "a"}})
    assert causal.window.tokens == causal.stream.sequence_length + 1


def test_ids_that_the_tokenizer_has_itself_are_not_added():
    objective = {"name": "masked_order"}
    model = {"family": "encoder", "token_types": 2, "text_classes": 2, "pooler": True}
    tree = {"run": {"name": "a"}, "stream": {"mask_documents": False, "sequence_length": 64}}
    tree |= {"objective": objective, "model": model}
    tokenizer = {"vocab_size": 400, "ids": {"mask": 7}}
    config = RunConfig.model_validate(tree | {"tokenizer": tokenizer})
    assert config.objective_ids == {"mask": 7, "cls": 400, "sep": 401}
    assert config.added_ids == {"cls": 400, "sep": 401} and config.num_ids == 402
    tokenizer["ids"] = {"mask": 400}
    with pytest.raises(ValueError, match="ids.mask = 400 is no id of the tokenizer"):
        RunConfig.model_validate(tree | {"tokenizer": tokenizer})
