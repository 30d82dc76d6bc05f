"""What a record holds beside its text: the other text of a pair, a dialogue's roles, a label, tags
of its words, an answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmscale.config.corpus import CorpusSourceConfig
from lmscale.corpus.answers import find_answer
from lmscale.corpus.messages import read_instruction, read_turns
from lmscale.files.strangers import kind_of_json, quote

LARGEST = 3.4e38  # of a label that is a number: fp32


@dataclass(frozen=True, kw_only=True)
class MarkedText:
    """The text of a record in its pieces, and what is said of it."""

    pieces: tuple[str, ...]
    """The two parts of a pair; of a question with an answer four: the question, and of its context
    what stands before the answer, the answer, and what stands behind it; what each turn of a
    dialogue says; the words of a tagged text, each with what stands before it; else the text.
    """
    is_pair: bool = False
    label: int | float | None = None
    tags: tuple[int, ...] = ()
    """One for each piece."""
    has_span: bool = False
    """Whether the third of four pieces is an answer."""
    roles: tuple[str, ...] = ()
    """Of a dialogue, who says each piece."""

    @property
    def has_parts(self) -> bool:
        """Whether the pieces are texts of their own."""
        return self.is_pair or bool(self.roles)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)


class RecordFields:
    """Which fields of a record a source reads, and how. What they are looked up in is made once:
    a corpus has many records, and may have many classes.
    """

    def __init__(self, source: CorpusSourceConfig) -> None:
        self.source = source
        self.by_setting = source.fields_read
        """Setting → key or column of all that is read."""
        self.has_more = self.by_setting.keys() != {"text_field"}
        """Whether that is other than a text alone."""
        self.text_name = source.messages_field or source.instruction_field or source.text_field
        self._label_kind = source.label_kind
        self._texts = [source.text_field, *filter(None, [source.target_field])]
        self._places = {name: place for place, name in enumerate(source.label_names)}
        self._are_numbers = any(map(_is_number, source.label_names))

    def find_repeated(self, line: str) -> str | None:
        """A field that comes twice in a JSON object, of which Python keeps the last."""
        keys = self.by_setting.values()
        # Nearly no line holds such a key twice, be it inside of another object.
        if all(line.count(f'"{key}"') < 2 for key in keys):
            return None
        pairs: list[tuple[str, Any]] = []  # of the last object that ended, which is the outermost

        def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
            nonlocal pairs
            pairs = found
            return {}

        json.loads(line, object_pairs_hook=keep)
        names = [name for name, _ in pairs]
        return next((key for key in keys if names.count(key) > 1), None)

    def read(self, record: Mapping[str, Any]) -> MarkedText:
        """The text of a record that has all fields, with what is said of it.

        Raises ``ValueError`` for values of another kind, and labels that are none.
        """
        source = self.source
        if source.has_dialogues:
            turns = (
                read_turns(record[source.messages_field], source.messages_field)
                if source.messages_field
                else read_instruction(record, source)
            )
            return MarkedText(
                pieces=tuple(turn.content for turn in turns),
                roles=tuple(turn.role for turn in turns),
            )
        if source.tags_field:
            words, tags = record[source.text_field], record[source.tags_field]
            pieces = _separate(words, source)
            if not isinstance(tags, Sequence) or isinstance(tags, str) or len(tags) != len(pieces):
                count = len(tags) if isinstance(tags, Sequence) else "no"
                raise ValueError(
                    f"{source.tags_field!r} (tags_field) holds {count} tags of {len(pieces)} words"
                )
            return MarkedText(
                pieces=pieces, tags=tuple(self._place_of(tag, "tags_field") for tag in tags)
            )
        for field in self._texts:
            if not isinstance(record[field], str):
                raise ValueError(f"{field!r} holds {kind_of_json(record[field])}, not text")
        label = None
        if self._label_kind == "classes":
            label = self._place_of(record[source.label_field], "label_field")
        elif self._label_kind == "numbers":
            label = _number_of(record[source.label_field], source.label_field)
        pieces = tuple(record[field] for field in self._texts)
        if self._label_kind == "spans":
            span = find_answer(record, source)
            if span is not None:
                question, context = pieces
                pieces = (question, context[: span[0]], context[slice(*span)], context[span[1] :])
            return MarkedText(pieces=pieces, is_pair=True, has_span=span is not None)
        return MarkedText(pieces=pieces, is_pair=source.has_pairs, label=label)

    def _place_of(self, value: Any, setting: str) -> int:
        """The place of a class or tag in ``label_names``."""
        name = value
        if isinstance(value, bool):  # never a place: of spam and ham, true is no second one
            name = "true" if value else "false"
        elif isinstance(value, int):
            if not self._are_numbers and 0 <= value < len(self._places):
                return value
            name = str(value) if self._are_numbers else None
        place = self._places.get(name) if isinstance(name, str) else None
        if place is None:
            where = f"{getattr(self.source, setting)!r}, {setting}"
            raise ValueError(f"{_shown(value)} ({where}) is none of label_names")
        return place


class NameFinder(RecordFields):
    """The same of a source whose ``label_names`` are not known: it numbers the names as they come.

    A whole number is a name, too, and what is true or false the name ``true`` or ``false``.
    """

    def __init__(self, source: CorpusSourceConfig) -> None:
        super().__init__(source)
        if source.label_field:
            self._label_kind = "classes"
        self.found: dict[str, int] = {}
        """Name → its number."""

    def _place_of(self, value: Any, setting: str) -> int:
        name = value
        if isinstance(value, bool):
            name = "true" if value else "false"
        elif isinstance(value, int):
            name = str(value)
        if not isinstance(name, str):
            where = f"{getattr(self.source, setting)!r}, {setting}"
            raise ValueError(f"{_shown(value)} ({where}) is no name of a class")
        if not name or not name.isprintable():
            raise ValueError(f"{ascii(name)} cannot be a name: it is empty, or cannot be shown")
        return self.found.setdefault(name, len(self.found))


def _separate(words: Any, source: CorpusSourceConfig) -> tuple[str, ...]:
    """The words of a tagged text, all but the first behind the separator."""
    if not isinstance(words, Sequence) or isinstance(words, str):
        raise ValueError(
            f"{source.text_field!r} (text_field) holds {kind_of_json(words)}, not a list of words"
        )
    for number, word in enumerate(words, start=1):
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"word {number} of {source.text_field!r} is {_shown(word)}, no word")
    separator = source.word_separator
    return tuple(f"{separator if number else ''}{word}" for number, word in enumerate(words))


def _shown(value: Any) -> str:
    """As JSON has it where Python says it otherwise."""
    is_constant = value is None or isinstance(value, bool)
    return kind_of_json(value) if is_constant else quote(value)


def _number_of(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise ValueError(
            f"{_shown(value)} ({field!r}, label_field) is no number; classes need label_names"
        )
    return float(value)


def _is_number(name: str) -> bool:
    """Such as 3, -1 and 0.5; nan and inf may be words."""
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False
