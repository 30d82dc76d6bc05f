"""The section ``corpus``: which raw files, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema

from lmscale.config.base import MAX_BYTES, Place, Section
from lmscale.config.labels import LabelSet, find_name_problems

# USTAR has 100 bytes for a member's name, which begins with the source's.
_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")

Format = Literal["auto", "text", "html", "jsonl", "json", "parquet", "webdataset"]
PLAIN = ("text", "html")
"""Formats whose records have no fields."""


class InputConfig(Section):
    """Files of a source, which may be read otherwise than its other ones. In the YAML a pattern
    alone is such a section, too.
    """

    files: str
    """A file, a glob pattern, or a URL."""
    format: Format | None = None
    text_field: str | None = None
    encoding: str | None = None
    separator: str | None = None
    strip_html: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_pattern(cls, value: Any) -> Any:
        return {"files": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_written(self, render: SerializerFunctionWrapHandler) -> Any:
        tree = {key: value for key, value in render(self).items() if value is not None}
        return self.files if tree.keys() == {"files"} else tree

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(schema)]}

    @property
    def settings(self) -> dict[str, Any]:
        """Those that it has of its own."""
        return {k: value for k, value in self if k != "files" and value is not None}


class CorpusSourceConfig(Section):
    """One named collection of raw files."""

    inputs: tuple[InputConfig, ...] = Field(min_length=1, strict=False)
    """Files, glob patterns, or URLs: ``s3://`` and ``gs://``, which may be patterns too, and
    ``https://``, one file each. One may have settings of its own: ``{files: PATTERN, format: …,
    text_field: …, encoding: …, separator: …, strip_html: …}``.
    """
    format: Format = "auto"
    """``auto`` goes by the ending: .txt .md .rst (text), .html .htm .xhtml, .jsonl, .json (an array
    of objects, or JSON lines), .parquet, .tar (webdataset), and with .gz .bz2 .xz .zst behind.
    Of ``html`` the text is kept, without markup, scripts and styles.
    """
    text_field: str = "text"
    """The JSON key or Parquet column that holds the text."""
    encoding: str = "auto"
    """Encoding of text and JSON. ``auto`` is UTF-8, and of ``html`` what a page declares
    (``<meta charset>``). A page's byte order mark overrules any. A record with a byte that does not
    decode is broken.
    """
    separator: str = ""
    """What stands between two documents of a .txt file: ``blank_lines``, or any text, such as
    ``"\\f"``. Empty: a file is one document.
    """
    strip_html: bool | None = None
    """Whether texts of other formats than ``html`` hold markup to be removed, as those of pages in
    JSON lines. Of code it would eat ``#include <stdio.h>``. Default: ``corpus.strip_html``.
    """
    max_record_chars: PositiveInt = Field(default=64 * 2**20, le=2**40)
    """A longer line, row, tar member or separated document is broken. It bounds the memory: about 2
    bytes a character, 9 where a line of English holds an emoji. A .txt that is one document has
    no such limit.
    """
    max_bad_records: int = Field(default=0, ge=0)
    """Most broken records (JSON lines, rows without text) skipped and counted; more: an error."""
    target_field: str = ""
    """Pairs, as for translation: the key or column of the text that is to be written, where
    ``text_field`` holds the one to be read.
    """
    messages_field: str = ""
    """Dialogues: the key or column of the list of messages, each with ``role`` (system, user,
    assistant) and ``content``, or with ShareGPT's ``from`` (human, gpt) and ``value``. It is read
    in place of ``text_field``.
    """
    instruction_field: str = ""
    """Dialogues of one question and its answer, as Alpaca has them (``instruction``): the key or
    column of what is asked, where ``output_field`` holds the answer. It is read in place of
    ``text_field``.
    """
    input_field: str = ""
    """Of such a dialogue: the key or column of the text that is asked about (``input``), which
    follows the instruction behind an empty line; where it is empty or null there is none.
    """
    output_field: str = ""
    """Of such a dialogue: the key or column of the answer (``output``)."""
    label_field: str = ""
    """The key or column of the whole document's label: one of ``label_names`` or, without names, a
    number.
    """
    tags_field: str = ""
    """The key or column of a list of tags of ``label_names``, one for each word; ``text_field``
    then holds the list of the words.
    """
    answer_field: str = ""
    """Questions (``text_field``) with a context (``target_field``): the key or column of the answer
    that stands in the context, as SQuAD has it, ``{text: […], answer_start: […]}`` or a list of
    ``{text, answer_start}``, of which the first one counts; or its text. Empty or null: the context
    has no answer.
    """
    answer_start_field: str = ""
    """Of an answer that is a text alone: the key or column of the character of the context, from 0,
    where it begins; by default the first place where it stands.
    """
    label_names: tuple[str, ...] = Field(default=(), strict=False)
    """The classes or tags in their order. A whole number in the files is a place in it, from 0,
    unless names are numbers themselves; what is true or false is the name ``true`` or ``false``.
    """
    word_separator: str = " "
    """White space between the words of a tagged text; empty for words that are characters."""
    heldout_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Of this source; default: ``corpus.heldout_fraction``. 0 for files that are a held-out part
    themselves.
    """

    FIELDS_BESIDE: ClassVar = (
        *("target_field", "messages_field", "label_field", "tags_field"),
        *("answer_field", "answer_start_field"),
        *("instruction_field", "input_field", "output_field"),
    )
    later: ClassVar = frozenset(
        {*FIELDS_BESIDE, "label_names", "word_separator", "strip_html", "heldout_fraction"}
    )

    @property
    def fields_beside(self) -> dict[str, str]:
        """Setting → key or column of what a record holds beside its text."""
        return {name: key for name in self.FIELDS_BESIDE if (key := getattr(self, name))}

    @property
    def fields_read(self) -> dict[str, str]:
        """Setting → key or column of all that is read of a record."""
        text = {} if self.has_dialogues else {"text_field": self.text_field}
        return {**text, **self.fields_beside}

    @property
    def has_dialogues(self) -> bool:
        return bool(self.messages_field or self.instruction_field)

    @property
    def has_pairs(self) -> bool:
        return bool(self.target_field)

    @property
    def label_kind(self) -> Literal["classes", "numbers", "tags", "spans"] | None:
        if self.tags_field:
            return "tags"
        if self.answer_field:
            return "spans"
        return ("classes" if self.label_names else "numbers") if self.label_field else None

    @property
    def labels(self) -> LabelSet | None:
        """Of its documents; None: they have none."""
        kind = self.label_kind
        return None if kind is None else LabelSet(kind=kind, names=self.label_names)

    def made_by(self) -> dict[str, Any]:
        """The settings that a corpus is known by, those of ``later`` only where they are used: a
        corpus made before there were any is the same. So is one without pages of an ``auto``.
        """
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        unused = {name for name in self.later if getattr(self, name) == defaults[name]}
        made_by = self.model_dump(mode="json", exclude=unused)
        return made_by | {"encoding": "utf-8"} if self.encoding == "auto" else made_by

    def find_problems(self) -> Iterator[str]:
        yield from self._find_field_problems()
        for each in self.inputs:
            if each.settings:
                own = self.model_copy(update=each.settings)
                yield from (f"inputs: {each.files}: {p}" for p in own._find_field_problems())
        if self.tags_field and (self.label_field or self.target_field):
            yield "tags_field: tagged words are neither a pair nor do they have a label; name one"
        yield from self._find_answer_problems()
        yield from self._find_dialogue_problems()
        if self.word_separator.strip():
            yield f"word_separator = {self.word_separator!r} is no white space"
        if self.label_kind is not None:
            problems = find_name_problems(self.label_kind, self.label_names)
            yield from (f"label_names: {problem}" for problem in problems)
        elif self.label_names:
            yield "label_names are given, but neither label_field nor tags_field"

    def _find_answer_problems(self) -> Iterator[str]:
        if not self.answer_field:
            if self.answer_start_field:
                yield "answer_start_field is given, but no answer_field"
            return
        if self.label_field or self.tags_field:
            yield "answer_field: a question has an answer, and no label or tags beside it"
        if not self.target_field:
            yield "answer_field: an answer stands in a context; name its field in target_field"

    def _find_dialogue_problems(self) -> Iterator[str]:
        of_one = {"instruction_field", "input_field", "output_field"}
        given = self.fields_beside.keys()
        if self.messages_field and len(given) > 1:
            yield "messages_field: a dialogue is neither a pair nor has it labels or tags; name one"
        elif self.instruction_field and given - of_one:
            others = " and ".join(sorted(given - of_one))
            yield f"instruction_field: a dialogue has no {others}; name one"
        if of_one & given and not {"instruction_field", "output_field"} <= given:
            yield "instruction_field and output_field belong together, and input_field to both"

    def _find_field_problems(self) -> Iterator[str]:
        """Why its fields cannot be read so, of all its files or of an input's."""
        fields = self.fields_read
        if twice := [name for name in fields if [*fields.values()].count(fields[name]) > 1]:
            named = ", ".join(f"{name} = {fields[name]!r}" for name in twice)
            yield f"{named}: each has to name a field of its own"
        if self.format in PLAIN and self.fields_beside:
            beside = " and ".join(self.fields_beside)
            yield f"format: {self.format} has no fields; {beside} need another"
        if self.tags_field and self.strip_html:
            yield "strip_html: it could remove words, and each has a tag"
        if self.answer_field and self.strip_html:
            yield "strip_html: it could remove an answer, or what stands around it"


class CorpusConfig(Section):
    """Raw files → cleaned documents, one folder per source with a train and a heldout part."""

    folder: Place = "data/corpus"
    sources: dict[str, CorpusSourceConfig] = Field(default_factory=dict)
    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    line_ends: Literal["lf", "keep"] = "lf"
    """``lf`` writes CR LF and CR as LF, and counts the documents where it did."""
    strip_html: bool = False
    """What a source's own ``strip_html`` is by default."""
    min_chars: int = Field(default=1, ge=0)
    """Shorter documents (after stripping white space at both ends) are dropped and counted."""
    max_chars: PositiveInt = 10_000_000
    """Longer documents are handled by ``on_overlong``."""
    on_overlong: Literal["split", "truncate", "drop"] = "split"
    drop_exact_duplicates: bool = True
    """Of a text that a source holds twice the first copy is kept. Line ends, white space at both
    ends and Unicode's normal form (NFC) make no difference, nor for ``heldout_fraction``.
    """
    heldout_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Part of the documents kept for evaluation, by a hash of the text: each stays where it is."""
    part_bytes: PositiveInt = Field(default=64 * 2**20, le=MAX_BYTES)
    """Raw files are cleaned in runs of about this size, each by one process; one file is never
    divided. The documents do not depend on it.
    """
    retries: int = Field(default=8, ge=0, le=100)
    """How often a read of a remote file is tried again, each time from where it was."""

    def find_problems(self) -> Iterator[str]:
        bad = [name for name in self.sources if not _SOURCE_NAME.fullmatch(name)]
        if bad:
            yield (
                f"sources: names become folders and shards: use letters, digits, - and _, not {bad}"
            )
        for field, what in (("tags_field", "tags of words"), ("answer_field", "answers")):
            held = [name for name, source in self.sources.items() if getattr(source, field)]
            stripped = [name for name in held if self.sources[name].strip_html is None]
            if self.strip_html and stripped:
                yield f"strip_html: {', '.join(stripped)} has {what} that it could remove"

    def strips(self, name: str) -> bool:
        """Whether markup is removed from a source's texts, wherever no input says otherwise."""
        own = self.sources[name].strip_html
        return self.strip_html if own is None else own

    def holds_out(self, name: str) -> float:
        """Which part of a source's documents is held out."""
        own = self.sources[name].heldout_fraction
        return self.heldout_fraction if own is None else own
