"""What a record holds beside its text: the other text of a pair, a label, tags of its words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lmscale.config.data import CorpusSourceConfig
from lmscale.files.strangers import quote

LARGEST = 3.4e38  # of a label that is a number: fp32


@dataclass(frozen=True, kw_only=True)
class MarkedText:
    """The text of a record in its pieces, and what is said of it."""

    pieces: tuple[str, ...]
    """The two parts of a pair; the words of a tagged text, each with what stands before it; else
    the text.
    """
    is_pair: bool = False
    label: int | float | None = None
    tags: tuple[int, ...] = ()
    """One for each piece."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)


def read_marked(record: Mapping[str, Any], source: CorpusSourceConfig) -> MarkedText:
    """The record's text with what ``source`` names beside it, all of whose keys are there.

    Raises ``ValueError`` for values of another kind, and labels that are none.
    """
    if source.tags_field:
        words, tags = record[source.text_field], record[source.tags_field]
        pieces = _separate(words, source)
        if not isinstance(tags, Sequence) or isinstance(tags, str) or len(tags) != len(pieces):
            count = len(tags) if isinstance(tags, Sequence) else "no"
            raise ValueError(
                f"{source.tags_field!r} (tags_field) holds {count} tags of {len(pieces)} words"
            )
        numbers = tuple(_number_of(tag, source, "tags_field") for tag in tags)
        return MarkedText(pieces=pieces, tags=numbers)
    fields = [source.text_field, *filter(None, [source.target_field])]
    for field in fields:
        if not isinstance(record[field], str):
            raise ValueError(f"{field!r} holds {type(record[field]).__name__}, not text")
    label = None
    if source.label_field:
        label = _label_of(record[source.label_field], source)
    pieces = tuple(record[field] for field in fields)
    return MarkedText(pieces=pieces, is_pair=source.has_pairs, label=label)


def _separate(words: Any, source: CorpusSourceConfig) -> tuple[str, ...]:
    """The words of a tagged text, all but the first behind the separator."""
    if not isinstance(words, Sequence) or isinstance(words, str):
        raise ValueError(
            f"{source.text_field!r} (text_field) holds {type(words).__name__}, not a list of words"
        )
    for number, word in enumerate(words, start=1):
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"word {number} of {source.text_field!r} is {quote(word)}, no word")
    separator = source.word_separator
    return tuple(f"{separator if number else ''}{word}" for number, word in enumerate(words))


def _label_of(value: Any, source: CorpusSourceConfig) -> int | float:
    if source.label_kind == "classes":
        return _number_of(value, source, "label_field")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(
            f"{quote(value)} ({source.label_field!r}, label_field) is no number; classes need "
            "label_names"
        )
    return float(value)


def _number_of(value: Any, source: CorpusSourceConfig, setting: str) -> int:
    """The place of a class or tag in ``label_names``."""
    places = _places(source.label_names)
    if isinstance(value, str) and value in places:
        return places[value]
    if isinstance(value, int):
        if not any(name.isdecimal() for name in places):
            if 0 <= value < len(places):
                return int(value)
        elif str(value) in places:
            return places[str(value)]
    where = f"{getattr(source, setting)!r}, {setting}"
    raise ValueError(f"{quote(value)} ({where}) is none of label_names")


@cache
def _places(names: tuple[str, ...]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}
