"""Questions with a context, of a person or of a file of them, as windows that a model can read.
Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.corpus import CorpusSourceConfig
from lmscale.config.supervised import AnswersConfig
from lmscale.corpus.answers import find_answer, read_answers
from lmscale.corpus.fields import RecordFields
from lmscale.errors import ConfigError, DataError
from lmscale.files.jsonl import unreadable
from lmscale.files.strangers import kind_of_json
from lmscale.tokenizer.base import Tokenizer

MOST_NAMED = 8  # broken records named one by one
OVERLAP = 64  # tokens of a context that two windows share, at least; and the longest answer


@dataclass(frozen=True, kw_only=True)
class AskedQuestion:
    """A question to a context, and what people have answered."""

    question: str
    context: str
    answers: tuple[str, ...] = ()
    """Several of one question; none: the context has no answer, or nobody knows."""
    where: str = ""
    """Its line in a file."""


@dataclass(frozen=True, kw_only=True)
class ReadWindow:
    """What a model reads at once: a question, and ``length`` tokens of its context."""

    number: int
    """Of the question."""
    begin: int
    length: int
    ids: tuple[int, ...]
    num_before: int
    """Tokens before those of the context."""


def check_answering(config: RunConfig) -> AnswersConfig:
    """Raise ``ConfigError`` for a run that has not learned to find answers."""
    if not isinstance(config.objective, AnswersConfig):
        raise ConfigError(
            f"objective.name = {config.objective.name!r}: this run finds no answers in a context. "
            "Name one that was trained with objective.name: answers."
        )
    return config.objective


def read_questions(path: Path, config: RunConfig) -> list[AskedQuestion]:
    """Those of a file of JSON lines, by the fields of the first source of answers that the run's
    configuration has, or ``question``, ``context`` and ``answers``.

    Raises ``DataError`` with the broken records, the first ones by their lines.
    """
    source = _source_of(config)
    questions, problems = [], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start:,}.") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                questions.append(_read_question(line, source, f"{path}:{number}"))
            except ValueError as error:
                problems.append(f"{path}:{number}: {error}.")
    if problems:
        more = len(problems) - MOST_NAMED
        told = [f"{more:,} more lines are broken."] if more > 0 else []
        raise DataError([*problems[:MOST_NAMED], *told])
    if not questions:
        raise DataError(f"{path}: holds no question.")
    return questions


def _source_of(config: RunConfig) -> CorpusSourceConfig:
    sources = (each for each in config.corpus.sources.values() if each.answer_field)
    usual = {"text_field": "question", "target_field": "context", "answer_field": "answers"}
    return next(sources, CorpusSourceConfig.model_validate({"inputs": ["-"], **usual}))


def _read_question(line: str, source: CorpusSourceConfig, where: str) -> AskedQuestion:
    try:
        record: Mapping[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {kind_of_json(record)}")
    fields = RecordFields(source)
    if missing := [key for key in fields.by_setting.values() if key not in record]:
        raise ValueError(f"no key {', '.join(map(repr, missing))}")
    question, context = (record[key] for key in (source.text_field, source.target_field))
    for key, text in ((source.text_field, question), (source.target_field, context)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{key!r} holds {kind_of_json(text)}, without a word")
        _check_unicode(text, key)
    find_answer(record, source)  # whether all of them stand there
    texts = tuple(text for text, _ in read_answers(record, source))
    return AskedQuestion(question=question, context=context, answers=texts, where=where)


def _check_unicode(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key!r} holds a lone surrogate, which is not Unicode text") from None


def plan_reading(
    questions: Sequence[AskedQuestion], config: RunConfig, tokenizer: Tokenizer, bos_id: int | None
) -> tuple[list[np.ndarray], list[ReadWindow]]:
    """The tokens of every context, and the windows in which they are read, as long as those of the
    training. Raises ``DataError`` where a question leaves no room for its context.
    """
    longest, most = check_answering(config).longest_answer, config.window.tokens
    before = [] if bos_id is None else [bos_id]
    contexts, windows, problems = [], [], []
    for number, each in enumerate(questions):
        front = [*before, *tokenizer.encode(each.question).tolist()]
        context = tokenizer.encode(each.context)
        contexts.append(context)
        room = most - len(front) - 1  # eos
        if room < min(len(context), longest):
            problems.append(
                f"{each.where or 'The question'}: has {len(front):,} tokens, which leave "
                f"{max(0, room):,} of the {most:,} that the run has learned to read at once. Ask a "
                "shorter one."
            )
            continue
        for begin, length in plan_windows(len(context), room, max(OVERLAP, longest)):
            ids = (*front, *context[begin : begin + length].tolist(), tokenizer.eos_id)
            windows.append(
                ReadWindow(
                    number=number, begin=begin, length=length, ids=ids, num_before=len(front)
                )
            )
    if problems:
        raise DataError(problems[:MOST_NAMED])
    return contexts, windows


def plan_windows(tokens: int, room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Where windows of at most ``room`` tokens begin in a context, and how long each is. Two that
    follow one another share ``overlap`` tokens, or half of the room; the last one is full.
    """
    if tokens <= room:
        yield 0, tokens
        return
    stride = room - min(overlap, room // 2)
    for begin in range(0, tokens - room, stride):
        yield begin, room
    yield tokens - room, room
