"""A new run whose embedding has rows for no piece of its tokenizer is refused before it starts."""

import json

import pytest

from launcher.local import launch_local
from lmscale.config import parse_config
from lmscale.errors import ConfigError
from lmscale.runs.own_ids import find_idle_rows


def idle_rows(folder, pieces, more=""):
    (folder / "meta.json").write_text(json.dumps({"vocab_size": pieces}))
    text = f"run: {{name: a, folder: {folder}/run}}\ntokenizer: {{folder: {folder}}}\n"
    return find_idle_rows(parse_config(text + more))


def test_a_vocabulary_left_at_its_default_above_a_smaller_tokenizer_is_told(tmp_path):
    assert idle_rows(tmp_path, 4096) == [
        f"{tmp_path} holds a tokenizer of 4,096 pieces, but tokenizer.vocab_size = 32000, its "
        "default, which makes an embedding of 27,904 rows too many. Set tokenizer.vocab_size to "
        "4096; rows that are meant to be spare are model.vocab_size."
    ]


@pytest.mark.parametrize(
    ("pieces", "more"),
    [
        (4096, "model: {vocab_size: 32000}"),  # they are meant
        (31_950, ""),  # no more rows than the next multiple of 128 has anyway
        (32_000, ""),
        (40_000, ""),  # too large, which is told elsewhere
    ],
)
def test_spare_rows_that_are_meant_or_of_the_rounding_are_no_mistake(tmp_path, pieces, more):
    assert idle_rows(tmp_path, pieces, more) == []


def test_launch_local_tells_it_before_a_rank_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    idle_rows(tmp_path, 4096)
    (tmp_path / "c.yaml").write_text(
        "run: {name: a}\ntokenizer: {folder: .}\nstream: {sources: {s: {shards: none}}}\n"
    )
    with pytest.raises(ConfigError, match=r"4,096 pieces.*27,904 rows too many"):
        launch_local("c.yaml", [], num_ranks=1)
    assert not (tmp_path / "runs").exists()
