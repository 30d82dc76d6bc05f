"""A dialogue → token ids by a chat template, with those that are the assistant's answers.

The template is Jinja's, in the sandbox and with the names that transformers 5.24 gives it
(``apply_chat_template``), so that the same file serves both.

    messages ──Jinja──▶ text ──cut at special tokens and around answers──▶ ids, is_answer

Names of special tokens count where the template writes them. Within a message they are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmscale.errors import DataError
from lmscale.files.strangers import quote
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.names_in_text import pattern_inside, split_at_names

Messages = Sequence[Mapping[str, str]]
"""Each with ``role`` (system, user, assistant) and ``content``."""

PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
_FREE = range(0xF0000, 0xFFFFE)  # characters for private use
_FAILURES = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError),
    *(RecursionError, MemoryError),  # of what it does with lengths and with itself
)
_LIKE_SPECIAL = re.compile(r"<\|[A-Za-z0-9_]+\|>")


class Encoded(NamedTuple):
    """A dialogue in tokens, ``[T]`` both."""

    ids: np.ndarray  # of the tokenizer's dtype
    is_answer: np.ndarray  # bool: of an answer of the assistant, the token that ends it included


class ChatTemplate:
    """A template with the tokenizer whose special tokens it writes; picklable.

    Raises ``DataError`` for text that is no template, for a special token that the tokenizer does
    not have, and for answers that end with none: a model could never say that it is done.
    """

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self._template = _compile(text)
        pieces = tokenizer.special_pieces
        named = dict.fromkeys(_LIKE_SPECIAL.findall(text))
        if missing := [name for name in named if name not in pieces]:
            raise DataError(
                f"The chat template writes {', '.join(missing)}, and the tokenizer has no such "
                "special token. Train one with them in tokenizer.special_tokens, or take the "
                "template plain, which needs none (tokenizer.chat_template)."
            )
        self._inside = pattern_inside(pieces)
        self._specials = {
            f"{role}_token": tokenizer.piece(number)
            for role, number in tokenizer.special_ids.items()
        }
        self.end_id = self._find_end()
        """The special token that ends an answer."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.text, self.tokenizer))

    @property
    def begins_with_bos(self) -> bool:
        return self.encode(PROBE).ids[0] == self.tokenizer.bos_id

    def encode(self, messages: Messages) -> Encoded:
        """The ids of a whole dialogue. Raises ``DataError`` where the template refuses it, or
        writes earlier turns otherwise once others follow, so that no answer can be told from it.
        """
        mark, begin, end = _free_characters(messages, 3)
        shielded = self._shield(messages, mark)
        text = self._render(shielded, marks=(begin, end))
        if begin in text:
            pieces = re.split(f"[{begin}{end}]", text)
        else:
            pieces = self._find_answers(shielded, text)
        ids, is_answer = [], []
        for place, piece in enumerate(pieces):
            found = self._encode(piece, mark)
            ids.append(found)
            is_answer.append(np.full(len(found), place % 2 == 1))
        return Encoded(np.concatenate(ids), np.concatenate(is_answer))

    def encode_prompt(self, messages: Messages) -> np.ndarray:
        """The ids behind which the assistant answers the last message."""
        mark, *_ = _free_characters(messages, 1)
        shielded = self._shield(messages, mark)
        return self._encode(self._render(shielded, add_generation_prompt=True), mark)

    def _find_end(self) -> int:
        ids, is_answer = self.encode(PROBE)
        ends = [n for n in ids[is_answer].tolist() if n in self.tokenizer.special_pieces.values()]
        if not ends:
            raise DataError(
                "The chat template ends an answer with no special token, so a model could never "
                "say that it is done. End it with eos_token, or with one of "
                "tokenizer.special_tokens."
            )
        return ends[-1]

    def _shield(self, messages: Messages, mark: str) -> list[dict[str, str]]:
        """The messages with a mark inside of what reads like a special token."""
        if not self._inside:
            return [dict(message) for message in messages]
        return [
            {**message, "content": re.sub(self._inside, rf"\g<0>{mark}", message["content"])}
            for message in messages
        ]

    def _find_answers(self, messages: list[dict[str, str]], text: str) -> list[str]:
        """Text, answer, text, …: an answer begins where its prompt ends, and ends with the last
        special token of its turn.
        """
        edges = [0]
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:number], add_generation_prompt=True)
            until = self._render(messages[: number + 1])
            if not (text.startswith(until) and until.startswith(prompt)):
                raise DataError(
                    f"The chat template writes turn {number + 1} of a dialogue otherwise than its "
                    "prompt asks for it, or than it does once others follow. Put {% generation %} "
                    "and {% endgeneration %} around what is the assistant's."
                )
            *answer, _ = split_at_names(until[len(prompt) :], self.tokenizer.special_pieces)
            length = sum(map(len, answer)) or len(until) - len(prompt)
            edges += [len(prompt), len(prompt) + length]
        edges.append(len(text))
        return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]

    def _encode(self, text: str, mark: str) -> np.ndarray:
        pieces, parts = self.tokenizer.special_pieces, []
        for place, part in enumerate(split_at_names(text, pieces)):
            if place % 2:
                parts.append(np.array([pieces[part]], dtype=self.tokenizer.dtype))
            elif part:
                parts.append(self.tokenizer.encode(part.replace(mark, "")))
        return np.concatenate(parts) if parts else np.empty(0, dtype=self.tokenizer.dtype)

    def _render(
        self,
        messages: list[dict[str, str]],
        *,
        add_generation_prompt: bool = False,
        marks: tuple[str, str] = ("", ""),
    ) -> str:
        try:
            return self._template.render(
                messages=messages,
                tools=None,  # given, as transformers does: templates ask whether it is none
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{_MARKS: marks},
                **self._specials,
            )
        except _FAILURES as error:
            told = str(error) or type(error).__name__
            raise DataError(f"The chat template fails: {told}.") from None


def with_bos(template: ChatTemplate) -> ChatTemplate:
    """One that begins with bos, as the documents of the shards do."""
    if template.begins_with_bos:
        return template
    return ChatTemplate("{{ bos_token }}" + template.text, template.tokenizer)


_MARKS = "lmscale_marks"


class _Generation(Extension):
    """``{% generation %}``, as transformers' ``AssistantTracker`` has it: around an answer."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_surround", [nodes.Name(_MARKS, "load")])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _surround(self, marks: tuple[str, str], caller: Callable[[], str]) -> str:
        return f"{marks[0]}{caller()}{marks[1]}"


def _compile(text: str) -> jinja2.Template:
    def refuse(message: object) -> None:
        raise jinja2.TemplateError(quote(str(message)))

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"The chat template is not Jinja's: line {error.lineno}: {error.message}."
        ) from None


def _free_characters(messages: Messages, count: int) -> list[str]:
    """Characters that no message holds."""
    taken = {each for message in messages for each in message["content"] if each >= chr(_FREE[0])}
    free: Iterable[str] = (each for each in map(chr, _FREE) if each not in taken)
    return [each for each, _ in zip(free, range(count), strict=False)]
