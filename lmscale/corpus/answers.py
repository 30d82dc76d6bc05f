"""Answers that stand in a context: where, as a record says it, and whether it is so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmscale.config.corpus import CorpusSourceConfig
from lmscale.files.strangers import kind_of_json, quote

SHOWN_CHARS = 40  # of an answer, in a message


def find_answer(record: Mapping[str, Any], source: CorpusSourceConfig) -> tuple[int, int] | None:
    """Where the first answer of a record stands in its context, in characters, without white space
    at its ends; None: it has no answer.

    Raises ``ValueError`` where any of its answers does not stand where the record says.
    """
    context, field = record[source.target_field], source.answer_field
    spans = []
    for text, start in read_answers(record, source):
        if not isinstance(text, str):
            raise ValueError(f"an answer of {field!r} is {kind_of_json(text)}, not text")
        if start is None:
            start = context.find(text)
            if start < 0:
                raise ValueError(
                    f"the answer {_shown(text)} ({field!r}, answer_field) does not stand in "
                    f"{source.target_field!r}"
                )
        if isinstance(start, bool) or not isinstance(start, int):
            told = quote(start) if isinstance(start, str | float) else kind_of_json(start)
            raise ValueError(f"where an answer begins is {told}, no whole number")
        if start < 0 or context[start : start + len(text)] != text:
            raise ValueError(_describe_misplaced(text, start, context, source))
        if not text.strip():
            raise ValueError(f"an answer of {field!r} is {quote(text)}, without a word")
        begin = start + len(text) - len(text.lstrip())
        spans.append((begin, begin + len(text.strip())))
    return spans[0] if spans else None


def read_answers(
    record: Mapping[str, Any], source: CorpusSourceConfig
) -> list[tuple[Any, int | None]]:
    """The text of each answer, and where it begins; None: the record does not say where. Nothing
    was checked but how they are written. Raises ``ValueError``.
    """
    value, field = record[source.answer_field], source.answer_field
    if value is None or value == "":
        return []
    if isinstance(value, str):
        start = record.get(source.answer_start_field) if source.answer_start_field else None
        return [(value, start)]
    if isinstance(value, Mapping) and "text" in value:
        texts, starts = value["text"], value.get("answer_start")
        if isinstance(texts, str):
            return [(texts, starts)]
        if not _is_list(texts) or not (starts is None or _is_list(starts)):
            raise ValueError(f"{field!r} (answer_field) holds no lists of text and answer_start")
        starts = [None] * len(texts) if starts is None else starts
        if len(starts) != len(texts):
            raise ValueError(
                f"{field!r} (answer_field) holds {len(texts)} texts and {len(starts)} answer_start"
            )
        return list(zip(texts, starts, strict=True))
    if _is_list(value) and all(isinstance(each, Mapping) and "text" in each for each in value):
        return [(each["text"], each.get("answer_start")) for each in value]
    if _is_list(value) and all(isinstance(each, str) for each in value):
        return [(each, None) for each in value]
    raise ValueError(
        f"{field!r} (answer_field) holds {kind_of_json(value)} that is no answer: give its text, "
        "{text, answer_start}, or a list of them"
    )


def _describe_misplaced(text: str, start: int, context: str, source: CorpusSourceConfig) -> str:
    """With the place where it stands, if there is one: most such records count bytes, or count
    characters of a text that was cleaned since.
    """
    places = [at for at in range(len(context)) if context.startswith(text, at)] if text else []
    told = f"does not stand at character {start:,} of {source.target_field!r}"
    if places:
        nearest = min(places, key=lambda at: abs(at - start))
        told += f", but at {nearest:,}"
    else:
        told += ", nor anywhere in it"
    return f"the answer {_shown(text)} ({source.answer_field!r}, answer_field) {told}"


def _shown(text: str) -> str:
    return quote(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
