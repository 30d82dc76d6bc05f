"""The numeric settings of a run and of a cluster, found in the declarations, and what to feed them.

So a new setting is fed as well (tests/config/test_config_numbers.py, and of clusters
tests/launcher/test_cluster_numbers.py).
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from lmscale.config.kinds import Kinds
from lmscale.errors import ConfigError

# As YAML writes them; 10^400 and 2^16384 are integers that no float holds, the second one more
# digits than Python prints.
VALUES = ["0", "-1", "1", "3", "0.5", "1e-300", "1e18", "1e300", "-1e300"]
VALUES += [".inf", ".nan", "1000000000", f"{2**63}", f"-{2**63}"]
VALUES += [f"1{'0' * 400}", f"-1{'0' * 400}", f"0x1{'0' * 4096}", "true"]


def numeric_settings(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The path of every key whose value is a number, or a list of them."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        kinds = next((found for found in field.metadata if isinstance(found, Kinds)), None)
        inner = list(kinds.own.values()) if kinds else _sections_in(field.annotation)
        is_mapping = typing.get_origin(field.annotation) is dict
        for section_below in inner:
            yield from numeric_settings(section_below, f"{path}.{'NAME.' if is_mapping else ''}")
        if not inner and _is_numeric(field.annotation):
            yield path


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in _sections_in(part)]


def _is_numeric(annotation: Any) -> bool:
    if typing.get_origin(annotation) is typing.Literal:
        return any(type(choice) in (int, float) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) is dict:
        return False
    return annotation in (int, float) or any(map(_is_numeric, typing.get_args(annotation)))


def check_problems(error: ConfigError, key: str) -> None:
    """One line each, none without an end, and one of them names the key."""
    assert any(key.rpartition(".")[2] in problem for problem in error.problems), error.problems
    for problem in error.problems:
        assert len(problem.splitlines()) == 1 and len(problem) < 1500, problem
