"""Who gave a value of a configuration: a line of its file, or an option of the command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lmscale.files.redact import redact

MAX_SHOWN = 100  # characters of an override


@dataclass(frozen=True)
class Given:
    """An override, ``a.b=c``, and the option that it stands behind."""

    option: str
    text: str

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(self.text.partition("=")[0].strip().split("."))

    def __str__(self) -> str:
        text = redact(self.text)  # before it is cut, which would hide what a password is
        return f"{self.option} {text if len(text) <= MAX_SHOWN else f'{text[:MAX_SHOWN]}…'}"

    def is_named_in(self, problem: str, above: Sequence[str] = ()) -> bool:
        """Whether a problem of the section ``above`` tells of the override's key: by its path, by
        that within the section, or by a name that is no word of English.
        """
        path, depth = self.path, len(above)
        names = [".".join(path)]
        if depth and path[:depth] == tuple(above):
            names.append(".".join(path[depth:]))
        if "_" in path[-1]:
            names.append(path[-1])
        return any(
            name and re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", problem) for name in names
        )


@dataclass(frozen=True)
class Origin:
    """Of the values of one tree."""

    name: str
    """Of the file, or what else the tree is."""
    given: Mapping[tuple[str, ...], Given] = field(default_factory=dict)
    """Path in the tree → the override that filled what is at and below it."""
    lines: Callable[[], Mapping[tuple[str, ...], int]] = dict
    """Path → line of the file."""

    def of(self, location: Sequence[str | int], problem: str = "") -> str:
        """Whose the value at a location is; ``problem`` may tell of others in a section there."""
        path = tuple(map(str, location))
        above = [path[:depth] for depth in range(len(path), 0, -1)]
        if owner := next((self.given[each] for each in above if each in self.given), None):
            return str(owner)
        lines = self.lines()
        line = next((f":{lines[each]}" for each in above if each in lines), "")
        others = [str(each) for each in self.given.values() if each.is_named_in(problem, path)]
        return f"{self.name}{line}{' with ' if others else ''}{' '.join(others)}"


def blame(problem: str, given: Iterable[Given]) -> str:
    """A problem with the overrides before it that gave values of which it tells."""
    named = [str(each) for each in given if each.is_named_in(problem)]
    return f"{' '.join(named)}: {problem}" if named else problem
