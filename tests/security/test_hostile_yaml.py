"""A configuration or a profile is data: it runs nothing, and a short one takes little memory."""

import os

import pytest
import yaml

from lmscale.config import parse_config
from lmscale.config.cluster import parse_cluster
from lmscale.config.load import MAX_NODES, ConfigLoader, load_config
from lmscale.config.problems import MAX_PROBLEMS
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
    "value",
    ["[" * 20_000, "{a: " * 20_000, "9" * 5_000, "2026-13-01", "!!binary 'x'", "\x00"]
    + ["!!bool x", "!!timestamp x", "!!int ''", f"1{':59' * 400}.5", '"\\UFFFFFFFF"'],
)
def test_what_breaks_a_parser_is_the_users_mistake_and_no_bug(value):
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_config(f"run: {value}")


def test_a_number_whose_reading_would_take_the_square_of_its_length_is_refused():
    with pytest.raises(ConfigError, match="a number in base 60 of 150,001 characters"):
        parse_config(f"run: {{seed: 1{':59' * 50_000}}}")


@pytest.mark.parametrize(
    "number", ["0x" + "f" * 9000, "0b" + "1" * 50_000, "0" + "7" * 9000, "1" + ":59" * 3000]
)
@pytest.mark.parametrize("key", ["run.seed", "train.steps", "stream.mixture_block"])
def test_a_number_of_any_base_and_size_is_told_on_a_short_line(number, key):
    section, name = key.split(".")
    for text, more in ((f"{section}: {{{name}: {number}}}", []), ("", [f"{key}={number}"])):
        with pytest.raises(ConfigError) as caught:
            parse_config(text, more)
        assert any(key in problem for problem in caught.value.problems)
        assert max(map(len, caught.value.problems)) < 300


def test_a_weight_may_be_a_number_of_tokens():
    text = "run: {name: a}\nstream: {sources: {a: {shards: x, weight: 15_000_000_000_000}}}"
    assert parse_config(text).stream.sources["a"].weight == 15e12


def test_a_mixture_of_so_many_samples_that_no_memory_holds_them_is_refused():
    with pytest.raises(ConfigError, match=r"stream.mixture_block"):
        parse_config("run: {name: a}\nstream: {mixture_block: 100000000000}")


class CountedKey(str):
    """A text that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        CountedKey.compared += 1
        return str.__eq__(self, other)


def test_thousands_of_keys_are_not_compared_with_each_other():
    """20,000 took 54 s."""

    class Loader(ConfigLoader):
        def compose_node(self, parent, index):
            node = super().compose_node(parent, index)
            if isinstance(node, yaml.ScalarNode):
                node.value = CountedKey(node.value)
            return node

    count = 500
    loader = Loader("\n".join(f"k{n}: 1" for n in range(count)))
    loader.name = "x"
    assert loader.get_single_node() is not None
    assert CountedKey.compared < 10 * count


def test_of_very_many_problems_the_first_are_told_and_the_others_are_counted():
    with pytest.raises(ConfigError) as caught:
        parse_config("run: {name: a}\n" + "\n".join(f"k{n}: 1" for n in range(2 * MAX_PROBLEMS)))
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert caught.value.problems[-1] == f"config: {MAX_PROBLEMS} more problems like these."


def test_a_configuration_that_is_no_file_is_told_at_once(tmp_path):
    pipe, loop, folder = tmp_path / "pipe", tmp_path / "loop", tmp_path
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path in (pipe, loop, folder):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path)
