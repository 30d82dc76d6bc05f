"""The labels of a dataset: of which kind they are, and what their numbers stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lmscale.files.strangers import EXACT, Text

MOST_NAMES = {"classes": 2**31 - 1, "tags": 2**15 - 1, "numbers": 0}  # of int32, and of int16


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """The labels of a dataset. Raises ``ValueError`` for names that cannot be those of its kind."""

    __pydantic_config__ = EXACT
    kind: Literal["classes", "numbers", "tags"]
    """``classes``: each document is one of ``names``; ``tags``: each word is one of them;
    ``numbers``: each document has a number, as for a regression.
    """
    names: tuple[Text, ...] = ()

    def __post_init__(self) -> None:
        if problems := list(find_name_problems(self.kind, self.names)):
            raise ValueError("; ".join(problems))


def find_name_problems(kind: str, names: tuple[str, ...]) -> Iterator[str]:
    """Why these cannot be the names of a kind of labels."""
    most = MOST_NAMES[kind]
    if len(names) > most:
        yield f"{len(names):,} names are too many: {kind} have at most {most:,}"
    if not names and most:
        yield f"{kind} need names"
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        yield f"the names {', '.join(map(ascii, twice[:8]))} come more than once"
    if odd := [name for name in names if not name or not name.isprintable()]:
        yield f"{ascii(odd[0])} cannot be a name: it is empty, or cannot be shown"
