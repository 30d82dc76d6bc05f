"""Ids of an objective that are pieces of the tokenizer: no others are added for them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.config import RunConfig, dump_config, parse_config
from lmscale.config.load import validate_tree
from lmscale.config.token_ids import fold_ids, number_ids
from lmscale.errors import ConfigError
from lmscale.runs.continuation import CHANGES, Change, identity_of

SPANS = {
    "model": {"family": "encoder_decoder"},
    "stream": {"mask_documents": False, "sequence_length": 512},
    "objective": {"name": "spans", "sentinels": 40},
}


def settings(ids: dict, **sections) -> RunConfig:
    tokenizer = {"vocab_size": 600, "ids": ids}
    return validate_tree(
        RunConfig, {"run": {"name": "a"}, "tokenizer": tokenizer, **sections}, name="a.yaml"
    )


def test_t5s_ids_are_said_in_a_line_and_none_is_added():
    config = settings({"start": 0, "end": 1, "sentinels": [599, 500]}, **SPANS)
    assert config.objective_ids == {
        **{"start": 0, "end": 1},
        **{f"sentinel_{number}": 599 - number for number in range(40)},
    }
    assert config.added_ids == {} and config.num_ids == 600 and config.vocab_size == 640
    again = parse_config(dump_config(config))
    assert again.tokenizer.ids == config.tokenizer.ids and again == config


def test_what_the_tokenizer_does_not_have_is_added_above_it():
    config = settings({"start": 0, "sentinels": [598, 599]}, **SPANS)
    ids = config.objective_ids
    assert (ids["end"], ids["sentinel_1"], ids["sentinel_2"], ids["sentinel_39"]) == (
        *(600, 599, 601, 638),
    )
    assert len(config.added_ids) == 39 and config.num_ids == 639
    assert settings({"sentinels": [9, 5], "sentinel_1": 77}, **SPANS).objective_ids[
        "sentinel_1"
    ] == (77)


@given(
    st.sets(st.sampled_from(["start", "end", "mask"])),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_names_get_the_ids_that_are_named_and_new_ones_in_a_row(named, first, last, count):
    ids = {name: 20 + place for place, name in enumerate(sorted(named))} | {
        "sentinels": (first, last)
    }
    names = ["start", "end", "mask", *(f"sentinel_{number}" for number in range(count))]
    found = number_ids(names, ids, first=100)
    assert [*found] == names
    assert [n for n in found.values() if n >= 100] == [
        *range(100, 100 + sum(n >= 100 for n in found.values()))
    ]
    sentinels = [found[name] for name in names[3:] if found[name] < 100]
    step = 1 if last >= first else -1
    assert sentinels == [*range(first, last + step, step)][:count]
    assert number_ids(names, fold_ids(found), first=0) == found


def test_all_that_is_wrong_with_them_is_told_at_once():
    ids = {"maks": 4, "mask": 600, "start": [1, 2], "end": 7, "sentinels": 5, "sentinel_3": 7}
    with pytest.raises(ConfigError) as caught:
        settings(ids, **SPANS)
    told = str(caught.value)
    for problem in (
        "tokenizer.ids.maks: no objective has such an id; did you mean mask?",
        "tokenizer.ids.mask = 600 is no id of the tokenizer, which has tokenizer.vocab_size = 600",
        "tokenizer.ids.start: give one id",
        "tokenizer.ids.sentinels: give two ids, the first and the last: [32099, 32000]",
        "tokenizer.ids: end and sentinel_3 are one id, 7, which the objective could not tell apart",
    ):
        assert problem in told
    with pytest.raises(ConfigError, match="tokenizer.ids.sentinels = 1000000000 is no id"):
        settings({"sentinels": [0, 10**9]}, **SPANS)


def test_only_what_is_written_may_begin_with_what_ends_it():
    assert settings({"start": 2, "end": 2}, **SPANS).objective_ids["start"] == 2
    marks = {"objective": {"name": "fill_middle"}}
    with pytest.raises(ConfigError, match="prefix and middle are one id, 5"):
        settings({"prefix": 5, "suffix": 6, "middle": 5}, **marks)
    # Of no objective of this run.
    assert settings({"prefix": 5, "middle": 5, "cls": 5}).objective_ids == {}


def test_an_embedding_that_is_full_says_that_the_tokenizer_may_have_them():
    model = {"family": "encoder", "vocab_size": 600}
    said = r"or name those that the tokenizer has: tokenizer.ids: \{mask: ID\}"
    with pytest.raises(ConfigError, match=said):
        settings({}, model=model, objective={"name": "masked"})
    assert settings({"mask": 103}, model=model, objective={"name": "masked"}).vocab_size == 600


def test_they_are_fixed_and_part_of_what_a_checkpoint_is_of():
    assert CHANGES["tokenizer.ids"] is Change.FIXED
    objective = {"name": "masked"}
    model = {"family": "encoder"}
    plain, named = (settings(ids, model=model, objective=objective) for ids in ({}, {"mask": 103}))
    assert identity_of(plain, "f")["objective"]["added_ids"] == {"mask": 600}
    assert identity_of(named, "f")["objective"]["added_ids"] == {"mask": 103}
    # What the objective does not use makes no other run of it.
    more = settings({"mask": 103, "cls": 2}, model=model, objective=objective)
    assert identity_of(more, "f") == identity_of(named, "f")
