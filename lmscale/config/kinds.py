"""Sections of which there are several kinds: a key in the YAML says whose keys the section has."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from lmscale.config.base import Section

Kind = TypeVar("Kind", bound=Section)


class Ability(str, Enum):
    """What an objective may need of a family of models, and a family may offer."""

    CAUSAL = "causal"  # a position sees itself and what lies before it
    BIDIRECTIONAL = "bidirectional"  # a position sees the whole document
    CROSS = "cross"  # one sequence is read, another one written


class Kinds(Generic[Kind]):
    """The kinds of one section by name: lmscale's own, and those of installed packages.

    A field of ``RunConfig`` is declared as ``Annotated[SerializeAsAny[Base], KINDS]``: the section
    is read as the kind that its ``key`` names, the first of ``own`` where the YAML names none. A
    package adds a kind by an entry point of ``group``, which names a subclass of ``base``; a YAML
    file alone imports nothing.
    """

    def __init__(
        self, base: type[Kind], *, key: str, group: str, own: Mapping[str, type[Kind]]
    ) -> None:
        self.base, self.key, self.group, self.own = base, key, group, dict(own)

    def names(self) -> list[str]:
        """Lmscale's own kinds, then those of installed packages."""
        return list(dict.fromkeys([*self.own, *sorted(entry_points(group=self.group).names)]))

    def section(self, name: object) -> type[Kind]:
        """The section of a kind. Raises ``ValueError`` for a name that is not known."""
        if isinstance(name, str) and name in self.own:
            return self.own[name]
        for entry in entry_points(group=self.group):
            if entry.name == name:
                return self._load(entry)
        raise ValueError(f"{self.key} = {name!r} is not known. Known: {', '.join(self.names())}.")

    def section_for(self, tree: Mapping[str, Any]) -> type[Kind]:
        """The section whose keys ``tree`` holds."""
        return self.section(tree.get(self.key, next(iter(self.own))))

    def parse(self, value: Any) -> Any:
        """A mapping becomes the section that it names; anything else is left for pydantic."""
        return self.section_for(value).model_validate(value) if isinstance(value, dict) else value

    def _load(self, entry: Any) -> type[Kind]:
        where = f"{self.key} = {entry.name!r} ({entry.value}, entry point {self.group})"
        try:
            section = entry.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{where} cannot be imported: {error}.") from error
        if not (isinstance(section, type) and issubclass(section, self.base)):
            raise ValueError(f"{where} is no subclass of {self.base.__name__}.")
        return section

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """For ``lmscale config schema``: the keys of any of the kinds."""
        sections = [self.section(name).__pydantic_core_schema__ for name in self.names()]
        return {"anyOf": [handler(section) for section in sections]}
