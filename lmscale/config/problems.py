"""What pydantic finds wrong with a configuration, in words: whose value, where, what to do."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lmscale.config.base import show
from lmscale.config.elsewhere import describe_elsewhere
from lmscale.config.elsewhere_sections import SECTIONS, describe_in_section, describe_section
from lmscale.config.kinds import Kinds
from lmscale.config.origin import Origin

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


def describe_problems(
    error: ValidationError, model: type[BaseModel], tree: Mapping[str, Any], origin: Origin
) -> list[str]:
    """Every problem that pydantic found, with its path and who gave the value."""
    found = error.errors(include_url=False)
    described = (_describe(problem, origin, model, tree) for problem in found[:MAX_PROBLEMS])
    lines = [_shorten(line) for text in described for line in text.splitlines()]
    if len(found) > MAX_PROBLEMS:
        lines.append(f"{origin.name}: {len(found) - MAX_PROBLEMS:,} more problems like these.")
    return lines


def _shorten(line: str) -> str:
    """A problem that quotes a text of any length, with its beginning and its end."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 300]} … {line[-300:]}"


def _describe(
    problem: Mapping[str, Any], origin: Origin, model: type[BaseModel], tree: Mapping[str, Any]
) -> str:
    location = problem["loc"]
    name = origin.of(location)
    path = ".".join(str(part) for part in location)
    kind = problem["type"]
    if kind == "extra_forbidden":
        if inside := _describe_inside(problem, origin, model, tree):
            return inside
        keys = _known_keys(location[:-1], model, tree)
        owners = _describe_owners(location, model, tree)
        # At the top a key is rarely one of ours that slipped out of its section: others have theirs
        # there, of which "warmup" is no ramp of the batch.
        is_first = not owners or len(location) == 1
        here = _find_here(problem, model, tree, of_others_only=bool(owners)) if is_first else None
        owners = "" if here else owners
        if here is None:
            said = describe_unknown(str(location[-1]), keys, is_known=bool(owners))
        else:
            said = f"unknown key. {here}"
        return f"{name}: {path}: {said}{owners}"
    if kind == "missing":
        return f"{name}: {path}: is required and missing."
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        where = f"{path + ': ' if path else ''}"
        ends = ("?", ".")
        return "\n".join(
            f"{origin.of(location, line)}: {where}{line}{'.' * (not line.endswith(ends))}"
            for line in message.splitlines()
        )
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
    # Of a short name half the letters are in many others: "name" in "norm_eps", "gas" in "guard".
    cutoff = 0.7 if len(key) <= 8 else 0.6
    near = difflib.get_close_matches(key, valid_keys, n=1, cutoff=cutoff)
    near = [] if is_known else near or [each for each in valid_keys if each.startswith(f"{key}_")]
    hint = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(valid_keys)}."
    return f"unknown key. {hint}"


def _describe_inside(
    problem: Mapping[str, Any], origin: Origin, model: type[BaseModel], tree: Mapping[str, Any]
) -> str:
    """A line for each key of a section that is another trainer's; "" for what is none."""
    *above, key = problem["loc"]
    value, name = problem["input"], str(key).lower()
    if not isinstance(value, Mapping) or not value or "engine" not in model.model_fields:
        return ""
    if name not in SECTIONS and describe_elsewhere(str(key), value, {}, tree):
        return ""  # one sentence answers all of it
    known = _known_keys(above, model, tree)
    if name not in SECTIONS and difflib.get_close_matches(str(key), known, n=1, cutoff=0.8):
        return ""  # a slip of a section of ours
    if name not in SECTIONS and _describe_owners(problem["loc"], model, tree):
        return ""  # a section of ours, of another kind than the one that was chosen
    answers = list(describe_section((str(key),), value, tree, places(model)))
    return "\n".join(
        f"{origin.of((*above, *path))}: {'.'.join(map(str, (*above, *path)))}: unknown "
        f"{'section' if len(path) == 1 else 'key'}. {sentence}"
        for path, sentence in answers
    )


def _find_here(
    problem: Mapping[str, Any],
    model: type[BaseModel],
    tree: Mapping[str, Any],
    *,
    of_others_only: bool,
) -> str | None:
    """Where a key of the configuration of a run is that has another trainer's name or, unless
    ``of_others_only``, stands in the wrong place; None where neither is so.
    """
    *above, key = problem["loc"]
    if "engine" in model.model_fields:  # else of a cluster, which no trainer configures
        beside: Any = tree
        for part in above:
            beside = beside.get(part) if isinstance(beside, Mapping) else None
        beside = beside if isinstance(beside, Mapping) else {}
        if above and (said := describe_in_section(str(above[-1]), str(key))):
            return said
        if said := describe_elsewhere(str(key), problem["input"], beside, tree):
            return said
    own = () if of_others_only else places(model).get(str(key), ())
    return f"Here this is {own[0]}." if len(own) == 1 else None


@cache
def places(model: type[BaseModel]) -> Mapping[str, Sequence[str]]:
    """Name of a key → its paths, in every section; NAME stands for a name of one's own."""
    found: dict[str, dict[str, None]] = {}  # the kinds of a section share keys

    def add(section: type[BaseModel], above: str) -> None:
        for name, field in section.model_fields.items():
            path, kinds, annotation = f"{above}{name}", _kinds_of(field), field.annotation
            found.setdefault(name, {})[path] = None
            if typing.get_origin(annotation) is dict:
                path, annotation = f"{path}.NAME", typing.get_args(annotation)[1]
            inner = _section_in(annotation)
            for each in kinds.own.values() if kinds else [inner] if inner else []:
                add(each, f"{path}.")

    add(model, "")
    return {name: tuple(paths) for name, paths in found.items()}


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
