"""A configuration or a profile is data: it runs nothing, and a short one takes little memory."""

import pytest

from lmscale.config import parse_config
from lmscale.config.cluster import parse_cluster
from lmscale.config.load import MAX_NODES
from lmscale.errors import ConfigError

TAGS = [
    "!!python/object/apply:os.mkdir ['{mark}']",
    "!!python/object/new:os.mkdir ['{mark}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:lmscale.config.run.RunSection {}",
    "!!python/tuple [1]",
]


@pytest.mark.parametrize("parse", [parse_config, parse_cluster])
@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_that_makes_an_object_is_refused(tmp_path, tag, parse):
    mark = tmp_path / "it ran"
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse("run: " + tag.replace("{mark}", str(mark)))
    assert not mark.exists()


def test_an_override_makes_no_object_either(tmp_path):
    mark = tmp_path / "it ran"
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_config("", [f"run.name=!!python/object/apply:os.mkdir ['{mark}']"])
    assert not mark.exists()


def laughs(first, more):
    """Nine of nine of nine …: 9^12 values in a few hundred bytes."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {more.format(', '.join([f'*a{n - 1}'] * 9))}" for n in range(1, 13)]
    return "\n".join(lines)


BOMBS = {
    "lists": laughs("[1]", "[{}]"),
    "mappings": laughs("{x: 1}", "{{y: [{}]}}"),
    "merge keys": laughs("{x: 1}", "{{<<: [{}]}}"),
    "itself": "a: &a [*a]",
    "itself as a key's value": "a: &a {b: *a}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_aliases_of_aliases_are_refused_before_they_fill_the_memory(bomb):
    with pytest.raises(ConfigError, match=f"more than {MAX_NODES:,} values"):
        parse_config(BOMBS[bomb])


def test_an_alias_in_its_right_place_is_taken():
    text = "run: {name: a}\nstream: {sources: {a: &s {shards: x}, b: {<<: *s, weight: 2}, c: *s}}"
    sources = parse_config(text).stream.sources
    assert [source.shards for source in sources.values()] == ["x"] * 3


@pytest.mark.parametrize(
    "value", ["[" * 20_000, "{a: " * 20_000, "9" * 5_000, "2026-13-01", "!!binary 'x'", "\x00"]
)
def test_what_breaks_a_parser_is_the_users_mistake_and_no_bug(value):
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_config(f"run: {value}")
