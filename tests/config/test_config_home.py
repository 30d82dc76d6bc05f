"""A ~ begins a home in every place that a person writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from lmscale.config import RunConfig, dump_config
from lmscale.config.base import expand_home
from lmscale.config.cluster import parse_cluster
from lmscale.config.load import parse_config
from lmscale.config.objective import DistillConfig
from lmscale.errors import ConfigError
from lmscale.files.found import find_files

NODE_S_OWN = {"LocalTierConfig.folder"}  # filled in on every node, as its variables are


def sections_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections_of(kind)


def test_every_key_that_names_a_place_is_one():
    places = {"folder", "base", "shards", "teacher", "init_from", "tasks_include_path"}
    keys = [
        (f"{section.__name__}.{name}", field)
        for section in {*sections_of(RunConfig), DistillConfig}
        for name, field in section.model_fields.items()
        if name in places and field.annotation is str
    ]
    assert len(keys) >= 10
    plain = {key for key, field in keys if not any("expand_home" in str(m) for m in field.metadata)}
    assert plain == NODE_S_OWN


def test_home_is_filled_in_wherever_it_begins_a_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = """
run: {name: x, folder: ~/runs/x}
corpus: {folder: ~/corpus, sources: {s: {inputs: [~/raw/*.txt]}}}
shards: {folder: ~root/shards}
stream: {sources: {s: {shards: ~/shards/s/train}}}
evaluation: {sets: {held: ~/shards/s/heldout}}
"""
    config = parse_config(text, ["tokenizer.folder=~/tok"])
    assert "~" not in dump_config(config).replace("~/raw", "")
    assert (config.tokenizer.folder, str(config.folder)) == (
        f"{tmp_path}/tok",
        f"{tmp_path}/runs/x",
    )
    assert config.shards.folder == expand_home("~root/shards") != "~root/shards"
    assert config.evaluation.sets == {"held": f"{tmp_path}/shards/s/heldout"}
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.txt").write_text("x")
    (pattern,) = config.corpus.sources["s"].inputs
    assert [file.location for file in find_files(pattern.files).files] == [f"{tmp_path}/raw/a.txt"]
    profile = "{nodes: 1, gpus_per_node: 1, time: '01:00:00', shared: [~/all], python: ~/v/bin/py}"
    cluster = parse_cluster(profile.replace("nodes: 1, ", ""))
    assert (cluster.shared, cluster.python) == ((f"{tmp_path}/all",), f"{tmp_path}/v/bin/py")


def test_the_home_of_nobody_is_told():
    with pytest.raises(ConfigError, match=r"shards\.folder: .*no home for '~nobody-here'"):
        parse_config("{run: {name: x}, shards: {folder: ~nobody-here/x}}")
