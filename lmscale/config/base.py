"""What every section shares: frozen values, bounded numbers, unknown keys refused."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from itertools import chain
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

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


Rule = Callable[[Any], Iterable[str]]
"""What is wrong with the values of a section by one rule, which reads no more than it judges."""

_valid_fields: ContextVar[Mapping[str, Any]] = ContextVar("_valid_fields")
"""Of the section that is read in this moment, by name: pydantic fills it, field by field."""


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
    rules: ClassVar[Sequence[Rule]] = ()
    """``find_problems`` in parts. Where some values are not of their type, those parts are asked
    that need none of them, so that all is told at once.
    """

    def find_problems(self) -> Iterable[str]:
        """What is wrong with values that are each of their type."""
        return chain.from_iterable(rule(self) for rule in self.rules)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_null(cls, value: Any, info: ValidationInfo) -> Any:
        """``key:`` and ``--set key=`` give null: nothing, for a text that may be empty."""
        _valid_fields.set(info.data)
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

    @model_validator(mode="wrap")
    @classmethod
    def _raise_problems(cls, value: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        outer = _valid_fields.set({})
        try:
            section = handler(value)
        except ValidationError as error:
            problems = _find_more_problems(cls, value, _valid_fields.get(), error)
            if not problems:
                raise
            raise _add_problems(error, value, cls.problem_separator.join(problems)) from None
        finally:
            _valid_fields.reset(outer)
        if problems := list(section.find_problems()):
            raise ValueError(cls.problem_separator.join(problems))
        return section


def _find_more_problems(
    kind: type[Section], value: Any, fields: Mapping[str, Any], error: ValidationError
) -> list[str]:
    """What the rules say of a section of which only some ``fields`` are valid.

    A key that is not known may be meant for any field that was not given, whose default then says
    nothing.
    """
    if not isinstance(value, dict):
        return []
    if any(each["type"] == "extra_forbidden" for each in error.errors(include_url=False)):
        fields = {name: _only_given(field) for name, field in fields.items() if name in value}
    section = _partial(kind, fields)
    found: list[str] = []
    for rule in kind.rules or (kind.find_problems,):
        with suppress(AttributeError):  # it needs a value that is not there
            for problem in rule(section):
                found.append(problem)
    return found


def _partial(kind: type[Section], fields: Mapping[str, Any]) -> Section:
    """A section with these fields alone: to read another one is an ``AttributeError``."""
    section = kind.model_construct()
    object.__setattr__(section, "__dict__", dict(fields))
    return section


def _only_given(value: Any) -> Any:
    """A field's value without what its sections have by default."""
    if isinstance(value, Section):
        given = {name: _only_given(getattr(value, name)) for name in value.model_fields_set}
        return _partial(type(value), given)
    if isinstance(value, dict):
        return {key: _only_given(item) for key, item in value.items()}
    return tuple(map(_only_given, value)) if isinstance(value, tuple) else value


def _add_problems(error: ValidationError, value: Any, message: str) -> ValidationError:
    """The same error with one more of the section as a whole."""
    details = [
        InitErrorDetails(
            type=each["type"], loc=each["loc"], input=each["input"], ctx=each.get("ctx", {})
        )
        for each in error.errors(include_url=False)
    ]
    more = InitErrorDetails(type="value_error", input=value, ctx={"error": ValueError(message)})
    return ValidationError.from_exception_data(error.title, [*details, more])


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
