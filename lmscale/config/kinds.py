"""Sections of which there are several kinds: a key in the YAML says whose keys the section has."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from enum import Enum
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PydanticUserError,
    ValidationError,
)
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from lmscale.config.base import Section
from lmscale.errors import ConfigError


class KindSection(Section):
    """A section of which there are several kinds, each a subclass."""

    implementation: ClassVar[str]
    """``module:NAME`` of what the kind stands for: a ``Family`` of models, or an ``Objective``."""
    free: ClassVar[frozenset[str]] = frozenset()
    """Keys that may change between a run's restarts: they do not change what a model computes, and
    no target count depends on them.
    """
    later: ClassVar[frozenset[str]] = frozenset()
    """Keys that the first checkpoints of the kind did not know: at its default none is written into
    a checkpoint's identity, so that runs begun without it go on.
    """

    @classmethod
    def later_keys(cls) -> frozenset[str]:
        """Those of the kind and of what it is a kind of."""
        return frozenset().union(*(vars(each).get("later", ()) for each in cls.__mro__))


Kind = TypeVar("Kind", bound=KindSection)
Implementation = TypeVar("Implementation")


class Ability(str, Enum):
    """What an objective may need of a family of models, and a family may offer."""

    CAUSAL = "causal"  # a position sees itself and what lies before it
    BIDIRECTIONAL = "bidirectional"  # a position sees the whole document
    PREFIX = "prefix"  # causal, but the beginning of a document can be seen as a whole
    CROSS = "cross"  # one sequence is read, another one written
    CLASSES = "classes"  # a layer tells classes of a document by the state of one of its tokens


class Kinds(Generic[Kind]):
    """The kinds of one section by name: lmscale's own, and those of installed packages.

    A field of ``RunConfig`` is declared as ``Annotated[SerializeAsAny[Base], KINDS]``: the section
    is read as the kind that its ``key`` names, the first of ``own`` where the YAML names none. A
    package adds a kind by an entry point of ``group``, which names a subclass of ``base`` with an
    ``implementation``; a YAML file alone imports nothing.
    """

    def __init__(
        self, base: type[Kind], *, key: str, group: str, own: Mapping[str, type[Kind]]
    ) -> None:
        self.base, self.key, self.group, self.own = base, key, group, dict(own)

    def names(self) -> list[str]:
        """Lmscale's own kinds, then those of installed packages."""
        return list(dict.fromkeys([*self.own, *sorted(_installed(self.group).names)]))

    def section(self, name: object) -> type[Kind]:
        """The section of a kind. Raises ``ValueError`` for a name that is not known, that several
        kinds have, or whose package is broken.
        """
        own = self.own.get(name) if isinstance(name, str) else None
        installed = {entry.value: entry for entry in _installed(self.group) if entry.name == name}
        values = list(dict.fromkeys([place_of(own), *installed])) if own else list(installed)
        if len(values) > 1:
            raise ValueError(
                f"{name!r} is the name of several kinds, {' and '.join(values)} "
                f"(entry points {self.group}). Uninstall all packages but one that name it."
            )
        if own is not None:
            return own
        for entry in installed.values():
            return self._load(entry)
        near = get_close_matches(str(name), self.names(), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"{name!r} is not known. {hint}Known: {', '.join(self.names())}; others are installed "
            f"with the packages that add them (entry points {self.group})."
        )

    def section_for(self, tree: Mapping[str, Any]) -> type[Kind]:
        """The section whose keys ``tree`` holds."""
        return self.section(tree.get(self.key, next(iter(self.own))))

    def package_of(self, section: Kind) -> str | None:
        """Name and version of the package that a kind comes with, such as ``toys 1.0``; None for
        lmscale's own.
        """
        name = getattr(section, self.key)
        added = [] if name in self.own else [e for e in _installed(self.group) if e.name == name]
        return next((f"{e.dist.name} {e.dist.version}" for e in added if e.dist), None)

    def parse(self, value: Any) -> Any:
        """A mapping becomes the section that it names; anything else is left for pydantic."""
        if not isinstance(value, dict):
            return value
        try:
            section = self.section_for(value)
        except ValueError as error:
            details = InitErrorDetails(
                type="value_error",
                loc=(self.key,),
                input=value.get(self.key),
                ctx={"error": error},
            )
            raise ValidationError.from_exception_data(self.base.__name__, [details]) from error
        return section.model_validate(value)

    def _load(self, entry: EntryPoint) -> type[Kind]:
        where = f"{entry.name!r} ({entry.value}, entry point {self.group})"
        try:
            section = entry.load()
        except Exception as error:  # it runs a stranger's module, which may raise anything
            raise ValueError(
                f"{where} cannot be imported: {type(error).__name__}: {error}."
            ) from error
        if not (isinstance(section, type) and issubclass(section, self.base)):
            raise ValueError(f"{where} is no subclass of {self.base.__name__}.")
        place = getattr(section, "implementation", None)
        if not (isinstance(place, str) and all(place.partition(":"))):
            raise ValueError(f"{where} has no implementation, module:NAME.")
        return section

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """For ``lmscale config schema``: the keys of any of the kinds that can be used."""
        schemas = [handler(section.__pydantic_core_schema__) for section in self.own.values()]
        for name in self.names()[len(self.own) :]:
            with suppress(ValueError, PydanticUserError):  # a broken package; reading names it
                schemas.append(handler(self.section(name).__pydantic_core_schema__))
        return {"anyOf": schemas}


def import_implementation(section: KindSection, expected: type[Implementation]) -> Implementation:
    """What a section's ``implementation``, module:NAME, names. Raises ``ConfigError``."""
    place = section.implementation
    return import_named(place, expected, f"The implementation {place} of {place_of(type(section))}")


def import_named(place: str, expected: type[Implementation], where: str) -> Implementation:
    """What ``place``, module:NAME, names; ``where`` is how a message calls it. Raises
    ``ConfigError``.
    """
    module, _, name = place.partition(":")
    try:
        implementation = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{where} cannot be imported: {error}. Repair or reinstall its package."
        ) from error
    if not isinstance(implementation, expected):
        raise ConfigError(f"{where} is a {type(implementation).__name__}, no {expected.__name__}.")
    return implementation


@cache  # of some 50 ms a call
def _installed(group: str) -> EntryPoints:
    return entry_points(group=group)


def place_of(section: type[Section]) -> str:
    return f"{section.__module__}:{section.__qualname__}"
