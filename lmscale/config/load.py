"""YAML and overrides → ``RunConfig``, with every problem at once and its path in the YAML."""

from __future__ import annotations

import difflib
import errno
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lmscale.config.base import Section
from lmscale.config.origin import Given, Origin, blame
from lmscale.config.problems import describe_problems
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError
from lmscale.files.redact import find_url_secrets, printable_name

Tree = TypeVar("Tree", bound=BaseModel)

MAX_NODES = 100_000
"""Values of a YAML text, those that an alias repeats counted every time: a few lines of aliases of
aliases would else fill the memory.
"""
MAX_SIXTIES = 10_000  # characters of a number such as 1:59:59, which takes time by their square
_MERGE_TAG = "tag:yaml.org,2002:merge"  # <<: *anchor


class ConfigLoader(yaml.SafeLoader):
    """YAML 1.1's SafeLoader, but 3e-4 is a number and a repeated key is an error."""

    def get_single_node(self) -> yaml.Node | None:
        # Here, not on construction, which writes merged keys into the nodes.
        root = super().get_single_node()
        mappings: list[yaml.MappingNode] = []
        if _expanded_size(root, {}, mappings) > MAX_NODES:
            raise ConfigError(
                f"{self.name}: its aliases (*name) make more than {MAX_NODES:,} values of it, or "
                "one without an end. Write out what they stand for."
            )
        if problems := [problem for node in mappings if (problem := _repeated_in(node))]:
            raise ConfigError(problems)
        return root


def _expanded_size(
    node: yaml.Node | None, sizes: dict[int, float], mappings: list[yaml.MappingNode]
) -> float:
    """Number of nodes at and below ``node`` with every alias expanded; infinite for a cycle.

    The mappings among them are appended to ``mappings``, in the order of the text.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # where it holds itself
        children = node.value
        if isinstance(node, yaml.MappingNode):
            mappings.append(node)
            children = [child for pair in node.value for child in pair]
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes, mappings) for child in children)
    return sizes[id(node)]


def _repeated_in(mapping: yaml.MappingNode) -> str | None:
    scalars = [key for key, _ in mapping.value if isinstance(key, yaml.ScalarNode)]
    keys = Counter((key.tag, key.value) for key in scalars if key.tag != _MERGE_TAG)
    repeated = sorted({value for (_, value), count in keys.items() if count > 1})
    if not repeated:
        return None
    return (
        f"{mapping.start_mark.name}: the mapping at line {mapping.start_mark.line + 1} gives "
        f"{', '.join(repeated)} more than once; keep one."
    )


def _construct_int(loader: ConfigLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MAX_SIXTIES and ":" in node.value:
        raise ValueError(f"a number in base 60 of {len(node.value):,} characters")
    return loader.construct_yaml_int(node)


ConfigLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)

# YAML 1.1 reads "3e-4" as text, because it wants a dot; 1.2 and everybody's habit read a number.
ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, axes: Sequence[str] = ()
) -> RunConfig:
    """Read a YAML file, apply ``a.b=c`` overrides, and validate. Raises ``ConfigError``.

    ``axes``: overrides by --array, where the others are by --set.
    """
    return parse_config(read_text(Path(path)), overrides, name=str(path), axes=axes)


def read_text(path: Path) -> str:
    """The text of a configuration file. Raises ``ConfigError``."""
    try:
        # A shell's <(…) is a pipe that somebody writes to; another one would be waited for.
        if path.is_fifo() and not path.is_relative_to("/dev"):
            raise OSError(errno.EINVAL, "a pipe stands where a file should be")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = _find_near(path)
        hint = f" Did you mean {printable_name(str(near))}?" if near else ""
        raise ConfigError(f"{path}: there is no such configuration file.{hint}") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ConfigError(
            f"{path}: is not UTF-8: byte {error.start + 1} is 0x{byte:02X}. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _find_near(path: Path) -> Path | None:
    """The YAML file beside it whose name is nearest, if one is near."""
    try:
        beside = [each for each in os.listdir(path.parent) if each.endswith((".yaml", ".yml"))]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.8)  # .yaml alone is a half
    return path.with_name(near[0]) if near else None


def parse_config(
    text: str,
    overrides: Sequence[str] = (),
    *,
    name: str = "config",
    axes: Sequence[str] = (),
) -> RunConfig:
    """The same from a string; ``name`` stands in the messages."""
    tree = parse_yaml(text, name)
    given: dict[tuple[str, ...], Given] = {}
    problems = [
        problem
        for option, texts in (("--set", overrides), ("--array", axes))
        for override in texts
        if (problem := apply_override(tree, Given(option, override), given))
    ]
    origin = Origin(name, given=given, lines=cache(lambda: find_lines(text)))
    try:
        config = validate_tree(RunConfig, tree, name=name, origin=origin)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    problems += [
        f"{origin.of(path.split('.'))}: {path}: the URL holds credentials, which would be written "
        "to config.yaml and to logs. Leave them out: libraries find them in the environment and in "
        "files of their own, such as ~/.aws/credentials or ~/.config/fsspec."
        for path in find_url_secrets(tree)
    ]
    problems += [blame(problem, given.values()) for problem in _find_export_problems(config)]
    if problems:
        raise ConfigError(problems)
    return config


@contextmanager
def blaming(overrides: Sequence[str]) -> Iterator[None]:
    """Problems that are found once the configuration is loaded, such as with a number of ranks,
    name the --set that gave a value of theirs.
    """
    try:
        yield
    except ConfigError as error:
        given = [Given("--set", override) for override in overrides]
        raise ConfigError([blame(problem, given) for problem in error.problems]) from None


def _find_export_problems(config: RunConfig) -> Sequence[str]:
    """Why the model could not be exported once it is trained, where it shall be."""
    if not config.export.format:
        return ()
    from lmscale.config.hf.llama_cpp import check_llama_cpp_config
    from lmscale.config.hf.target import plan_target  # seldom needed, and slow to import

    try:
        target = plan_target(config)
        if config.export.format == "gguf":
            model_type = target.architecture.model_type
            check_llama_cpp_config(model_type, target.section, target.sizes, config.tokenizer)
    except ConfigError as error:
        return error.problems
    return ()


def validate_tree(
    model: type[Tree], tree: Mapping[str, Any], *, name: str, origin: Origin | None = None
) -> Tree:
    """``tree`` as a frozen value; every problem at once, with its path. ``name``: whose it is."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = describe_problems(error, model, tree, origin or Origin(name))
        raise ConfigError(problems) from None


def find_lines(
    text: str, loader_class: type[ConfigLoader] = ConfigLoader
) -> Mapping[tuple[str, ...], int]:
    """Path of a key in a YAML text → its line. Of keys that were merged there is none."""
    lines: dict[tuple[str, ...], int] = {}

    def add(node: yaml.Node | None, above: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    lines[(*above, key.value)] = key.start_mark.line + 1
                    add(value, (*above, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for place, value in enumerate(node.value):
                lines[(*above, str(place))] = value.start_mark.line + 1
                add(value, (*above, str(place)))

    add(loader_class(text).get_single_node(), ())
    return lines


def dump_config(config: Section) -> str:
    """A run's configuration or a cluster's profile as YAML that is read back to an equal value."""
    tree = config.model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


def parse_yaml(
    text: str, name: str, loader_class: type[ConfigLoader] = ConfigLoader
) -> dict[str, Any]:
    """The mapping that a YAML text holds; an empty text is an empty one."""
    tree = _parse_value(text, name, loader_class)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: expected a mapping of sections, found {type(tree).__name__}.")
    return tree


def _parse_value(text: str, name: str, loader_class: type[ConfigLoader] = ConfigLoader) -> Any:
    try:
        loader = loader_class(text)
        loader.name = name
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError) as error:
        # Of 2026-13-01, a number of 5,000 digits, !!bool x, !!timestamp x, "\UFFFFFFFF".
        raise ConfigError(f"{name}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: it is nested too deeply.") from None


def apply_override(
    tree: dict[str, Any], override: Given, given: dict[tuple[str, ...], Given]
) -> str | None:
    """Put an override into ``tree``; what is wrong with it, or None. ``given`` gets the path that
    nothing but it has filled.
    """
    path, separator, value = override.text.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        return f"{override}: write it as section.key=value, for example train.steps=100."
    own = tuple(keys)
    for depth, key in enumerate(keys[:-1]):
        if tree.get(key) is None:
            tree[key], own = {}, own[: depth + 1]
        tree = tree[key]
        if not isinstance(tree, dict):
            return f"{override}: {'.'.join(keys[: depth + 1])} is a single value, not a section."
    tree[keys[-1]] = _parse_value(value, str(override))
    given[own] = override
    return None
