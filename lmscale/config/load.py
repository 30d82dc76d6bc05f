"""YAML and overrides → ``RunConfig``, with every problem at once and its path in the YAML."""

from __future__ import annotations

import difflib
import errno
import math
import re
import types
import typing
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lmscale.config.base import Section, show
from lmscale.config.kinds import Kinds
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError
from lmscale.files.redact import find_url_secrets

Tree = TypeVar("Tree", bound=BaseModel)

MAX_NODES = 100_000
"""Values of a YAML text, those that an alias repeats counted every time: a few lines of aliases of
aliases would else fill the memory.
"""
MAX_SIXTIES = 10_000  # characters of a number such as 1:59:59, which takes time by their square
MAX_LINE = 1200  # of a problem
MAX_PROBLEMS = 100  # that are described; of an unknown key the nearest known one is looked for
MAX_KEYS = 8  # of a section that are named where something else stands in its place
_YAML_WORDS = {
    "a valid tuple": "a list",
    "a valid list": "a list",
    "a valid dictionary": "a section",
    "Dictionary": "The section",
    "Tuple": "The list",
    " after validation": "",
}
"""What YAML calls that which pydantic's messages name."""
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


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply ``a.b=c`` overrides, and validate. Raises ``ConfigError``."""
    return parse_config(read_text(Path(path)), overrides, name=str(path))


def read_text(path: Path) -> str:
    """The text of a configuration file. Raises ``ConfigError``."""
    try:
        # A shell's <(…) is a pipe that somebody writes to; another one would be waited for.
        if path.is_fifo() and not path.is_relative_to("/dev"):
            raise OSError(errno.EINVAL, "a pipe stands where a file should be")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def parse_config(text: str, overrides: Sequence[str] = (), *, name: str = "config") -> RunConfig:
    """The same from a string; ``name`` stands in the messages."""
    tree = parse_yaml(text, name)
    given: set[tuple[str, ...]] = set()
    problems = [
        problem for override in overrides if (problem := _apply_override(tree, override, given))
    ]
    try:
        config = validate_tree(RunConfig, tree, name=name, given=given)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    problems += [
        f"{name}: {path}: the URL holds credentials, which would be written to config.yaml and to "
        "logs. Leave them out: libraries find them in the environment and in files of their own, "
        "such as ~/.aws/credentials or ~/.config/fsspec."
        for path in find_url_secrets(tree)
    ]
    problems += _find_export_problems(config)
    if problems:
        raise ConfigError(problems)
    return config


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
    model: type[Tree],
    tree: Mapping[str, Any],
    *,
    name: str,
    given: Collection[tuple[str, ...]] = (),
) -> Tree:
    """``tree`` as a frozen value; every problem at once, with its path.

    ``name``: whose the values are, but for those at and below the paths ``given`` by --set.
    """

    def owner_of(location: Sequence[str | int]) -> str:
        paths = (tuple(map(str, location[:depth])) for depth in range(1, len(location) + 1))
        return "--set" if any(path in given for path in paths) else name

    try:
        return model.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        described = (
            _describe(problem, owner_of(problem["loc"]), model, tree)
            for problem in found[:MAX_PROBLEMS]
        )
        lines = [_shorten(line) for text in described for line in text.splitlines()]
        if len(found) > MAX_PROBLEMS:
            lines.append(f"{name}: {len(found) - MAX_PROBLEMS:,} more problems like these.")
        raise ConfigError(lines) from None


def _shorten(line: str) -> str:
    """A problem that quotes a text of any length, with its beginning and its end."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 300]} … {line[-300:]}"


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


def _apply_override(tree: dict[str, Any], override: str, given: set[tuple[str, ...]]) -> str | None:
    """What is wrong with an override; ``given`` gets the path that nothing but it has filled."""
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        return f"--set {override}: write it as section.key=value, for example train.steps=100."
    own = tuple(keys)
    for depth, key in enumerate(keys[:-1]):
        if tree.get(key) is None:
            tree[key], own = {}, own[: depth + 1]
        tree = tree[key]
        if not isinstance(tree, dict):
            return (
                f"--set {override}: {'.'.join(keys[: depth + 1])} is a single value, not a section."
            )
    tree[keys[-1]] = _parse_value(value, f"--set {override}")
    given.add(own)
    return None


def _describe(
    problem: Mapping[str, Any], name: str, model: type[BaseModel], tree: Mapping[str, Any]
) -> str:
    location = problem["loc"]
    path = ".".join(str(part) for part in location)
    kind = problem["type"]
    if kind == "extra_forbidden":
        keys = _known_keys(location[:-1], model, tree)
        owners = _describe_owners(location, model, tree)
        said = describe_unknown(str(location[-1]), keys, is_known=bool(owners))
        return f"{name}: {path}: {said}{owners}"
    if kind == "missing":
        return f"{name}: {path}: is required and missing."
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        where = f"{name}: {path + ': ' if path else ''}"
        ends = ("?", ".")
        lines = message.splitlines()
        return "\n".join(where + line + "." * (not line.endswith(ends)) for line in lines)
    if kind == "int_type" and isinstance(problem["input"], float):
        message = "Input should be a whole number without a dot or an exponent"
    elif kind in ("model_type", "model_attributes_type"):
        message = f"Input should be a section{_describe_keys(_known_keys(location, model, tree))}"
    elif location and location[-1] == "[key]":
        path = ".".join(str(part) for part in location[:-1])
        message = message.replace("String", "The name")
    for pydantics, yamls in _YAML_WORDS.items():
        message = message.replace(pydantics, yamls)
    return f"{name}: {path}: {message[:1].lower()}{message[1:]}; found {show(problem['input'])}."


def _describe_keys(keys: Sequence[str]) -> str:
    """`` with the keys a, b``; "" where there are none, and only the first ones of many."""
    more = " …" if len(keys) > MAX_KEYS else ""
    return f" with the keys {', '.join(keys[:MAX_KEYS])}{more}" if keys else ""


def describe_unknown(key: str, valid_keys: Sequence[str], *, is_known: bool = False) -> str:
    """The end of the message about a key that is not among the known ones. ``is_known``: of another
    section, so that it is no slip of a key here.
    """
    near = [] if is_known else difflib.get_close_matches(key, valid_keys, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(valid_keys)}."
    return f"unknown key. {hint}"


def _describe_owners(
    location: Sequence[str | int], model: type[BaseModel], tree: Mapping[str, Any]
) -> str:
    """Where a key belongs that its section does not know; "" for nowhere near.

    To other kinds of the section, or to a section in it.
    """
    *above, key = map(str, location)
    section, kinds = _section_at(location[:-1], model, tree)
    if kinds is not None:
        owners = [name for name, kind in kinds.own.items() if key in kind.model_fields]
        return f" It is one of {'.'.join([*above, kinds.key])}: {', '.join(owners)}." * bool(owners)
    for name, field in section.model_fields.items() if section is not None else ():
        kinds = _kinds_of(field)
        inner = _section_in(field.annotation)
        sections = kinds.own.values() if kinds else [inner] if inner else []
        if any(key in each.model_fields for each in sections):
            return f" It belongs below {'.'.join([*above, name])}."
    return ""


def _known_keys(
    location: Sequence[str | int], model: type[BaseModel], tree: Mapping[str, Any]
) -> list[str]:
    """The keys of the section at ``location``."""
    section, _ = _section_at(location, model, tree)
    return list(section.model_fields) if section is not None else []


def _section_at(
    location: Sequence[str | int], model: type[BaseModel], tree: Mapping[str, Any]
) -> tuple[type[BaseModel] | None, Kinds | None]:
    """The section at ``location``, and the kinds of which ``tree`` has chosen it."""
    annotation: Any = model
    value: Any = tree
    kinds = None
    for part in location:
        section, kinds = _section_in(annotation), None
        value = value.get(part) if isinstance(value, Mapping) else None
        if section is not None and part in section.model_fields:
            field = section.model_fields[str(part)]
            kinds, annotation = _kinds_of(field), field.annotation
            if kinds and isinstance(value, Mapping):
                annotation = kinds.section_for(value)
        else:  # a key of a mapping such as stream.sources, or a place in a list such as of inputs
            arguments = [each for each in typing.get_args(annotation) if each is not ...]
            annotation = arguments[-1] if arguments else None
    return _section_in(annotation), kinds


def _kinds_of(field: FieldInfo) -> Kinds | None:
    return next((item for item in field.metadata if isinstance(item, Kinds)), None)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((s for s in map(_section_in, typing.get_args(annotation)) if s), None)
    return None
