"""What every section shares: frozen values, bounded numbers, unknown keys refused."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationInfo,
    field_validator,
    model_validator,
)

MAX_NUMBER = 1_000_000_000
"""Of a number whose field states no bound. So the products of a few stay far from 2^63, the ratio
of any two is finite, and a wait of so many seconds is one that Python can make.
"""
MAX_FOREIGN_NUMBER = 2**63 - 1  # in a mapping that is handed on: what others' integers hold
MAX_BYTES = 2**53


def expand_home(place: str) -> str:
    """A place with ``~`` and ``~user`` filled in, as a shell does where they begin a word."""
    expanded = os.path.expanduser(place)
    if place.startswith("~") and expanded == place:
        raise ValueError(f"there is no home for {place.partition('/')[0]!r}; write ./~… for a name")
    return expanded


Place = Annotated[str, AfterValidator(expand_home)]
"""A path, or a URL, that a person writes."""


class Section(BaseModel):
    """A frozen part of the configuration. Unknown keys are errors; docstrings become descriptions.

    Types are strict: true is no number and "12" is text, though 3 may stand for 3.0. A field that
    is a tuple says ``strict=False``, because YAML has only lists. Every number is finite, and no
    larger than its field says, or ``MAX_NUMBER``.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    problem_separator: ClassVar[str] = "; "

    def find_problems(self) -> Iterable[str]:
        """What is wrong with values that are each of their type."""
        return ()

    @field_validator("*", mode="before")
    @classmethod
    def _empty_null(cls, value: Any, info: ValidationInfo) -> Any:
        """``key:`` and ``--set key=`` give null: nothing, for a text that may be empty."""
        default = cls.model_fields[info.field_name or ""].default
        return "" if value is None and isinstance(default, str) and not default else value

    @field_validator("*", mode="after")
    @classmethod
    def _bound_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        own = (getattr(bound, name, None) for bound in field.metadata for name in ("le", "lt"))
        limit = MAX_FOREIGN_NUMBER if isinstance(value, dict) else MAX_NUMBER
        if all(bound is None for bound in own):
            for where, number in _numbers_in(value):
                if not -limit <= number <= limit:  # nor where it is no number
                    shown = f"found {show(number)}"
                    raise ValueError(f"{where}give a number of at most {limit:,}; {shown}")
        return value

    @model_validator(mode="after")
    def _raise_problems(self) -> Section:
        if problems := list(self.find_problems()):
            raise ValueError(self.problem_separator.join(problems))
        return self


def _numbers_in(value: Any, where: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers of a field's own value, each with its keys; sections in it look at theirs."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers_in(item, f"{where.removesuffix(': ')}{'.' * bool(where)}{key}: ")
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers_in(item, where)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield where, value


def show(value: object) -> str:
    """A value as a message shows it, on one line of bounded length."""
    if isinstance(value, int) and value.bit_length() > 64:  # Python prints no more than 4,300
        return f"a number of {math.ceil(value.bit_length() * math.log10(2))} digits"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list)):
        return f"{'a section' if isinstance(value, dict) else 'a list'}{'' if value else ', empty'}"
    if not isinstance(value, (str, int, float)):
        return type(value).__name__
    text = f"{value!r}"
    return text if len(text) <= 200 else f"{text[:200]}…"
