"""Sections of a configuration as nested mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmscale.errors import ConfigError

Tree = dict[str, Any]


def spread(settings: Mapping[str, Any]) -> Tree:
    """Keys with dots as sections: ``{"a.b": 1}`` is ``{"a": {"b": 1}}``. Raises ``ConfigError``
    where one is both a section and a value.
    """
    tree: Tree = {}
    for key, value in settings.items():
        *above, last = key.split(".")
        section = tree
        for name in above:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f"settings: {key}: {name} is given a value beside, {section!a}.")
        own = spread(value) if isinstance(value, Mapping) else value
        was = section.get(last)
        if isinstance(own, dict) and isinstance(was, dict):
            own = merge(was, own)
        section[last] = own
    return tree


def look_up(settings: Mapping[str, Any], key: str) -> Any:
    """What ``settings`` gives ``key``, a section or a value of one; None: nothing."""
    found: Any = spread(settings)
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def merge(tree: Mapping[str, Any], other: Mapping[str, Any]) -> Tree:
    """``other`` goes before ``tree``, section by section."""
    both = {**tree}
    for key, value in other.items():
        was = both.get(key)
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            value = merge(was, value)
        both[key] = value
    return both
