"""A record's list of messages, or its instruction and output → the turns of a dialogue, or why it
is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmscale.config.corpus import CorpusSourceConfig
from lmscale.files.strangers import kind_of_json, quote

ASSISTANT, SYSTEM, USER = "assistant", "system", "user"
_KEYS = (("role", "content"), ("from", "value"))  # OpenAI's, and ShareGPT's
_UNREAD = ("tool_calls", "function_call")  # without which what is said means something else
_ROLES = {each: each for each in (SYSTEM, USER, ASSISTANT)} | {"human": USER, "gpt": ASSISTANT}


class Turn(NamedTuple):
    role: str  # system, user or assistant
    content: str


class BrokenDialogueError(ValueError):
    """``detail``: what only this record has, beside the kind of the mistake."""

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what)
        self.detail = detail


def read_turns(messages: Any, field: str) -> tuple[Turn, ...]:
    """The turns: a system's, if there is one, then user and assistant by turns, the assistant last.

    Raises ``BrokenDialogueError`` for what is no such dialogue.
    """
    where = f"{field!r} (messages_field)"
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise BrokenDialogueError(f"{where} holds {kind_of_json(messages)}, not a list of messages")
    turns = tuple(
        _read_turn(message, number, where) for number, message in enumerate(messages, start=1)
    )
    roles = [turn.role for turn in turns]
    if ASSISTANT not in roles:
        raise BrokenDialogueError(f"{where} has no turn of the assistant")
    num_before = int(roles[0] == SYSTEM)
    for place, role in enumerate(roles[num_before:]):
        wanted, number = (USER, ASSISTANT)[place % 2], num_before + place + 1
        if role != wanted:
            raise BrokenDialogueError(
                f"{where} has its turns in the wrong order (system first if at all, then user and "
                "assistant by turns)",
                f"turn {number} is the {role}'s, and should be the {wanted}'s",
            )
    if roles[-1] != ASSISTANT:
        raise BrokenDialogueError(f"{where} ends without an answer of the assistant")
    return turns


def read_instruction(record: Mapping[str, Any], source: CorpusSourceConfig) -> tuple[Turn, ...]:
    """The two turns of an instruction, with what it is about, and its output.

    Raises ``BrokenDialogueError`` where one of them is no text, or has none.
    """
    texts = {}
    for setting in ("instruction_field", "input_field", "output_field"):
        if not (field := getattr(source, setting)):
            continue
        where, text = f"{field!r} ({setting})", record[field]
        is_optional = setting == "input_field"
        if is_optional and text is None:
            continue
        if not isinstance(text, str):
            raise BrokenDialogueError(f"{where} holds {kind_of_json(text)}, not text")
        if not (text.strip() or is_optional):
            raise BrokenDialogueError(f"{where} holds no text")
        if text.strip():
            texts[setting] = text
    answer = texts.pop("output_field")
    return Turn(USER, "\n\n".join(texts.values())), Turn(ASSISTANT, answer)


def _read_turn(message: Any, number: int, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise BrokenDialogueError(
            f"{where} holds a message that is no object",
            f"turn {number} is {kind_of_json(message)}",
        )
    keys = next((keys for keys in _KEYS if all(key in message for key in keys)), None)
    if keys is None:
        found = ", ".join(quote(key) for key in list(message)[:4]) or "none"
        raise BrokenDialogueError(
            f"{where} holds a message with neither role and content nor from and value",
            f"the keys of turn {number} are {found}",
        )
    role, content = (message[key] for key in keys)
    if unread := next((key for key in _UNREAD if message.get(key)), None):
        raise BrokenDialogueError(
            f"{where} holds a message with {unread}, which is not read", f"turn {number}"
        )
    if message.get("weight", 1) == 0:  # OpenAI's: this answer is not to be learned
        raise BrokenDialogueError(
            f"{where} holds a message of weight 0, and every answer is learned", f"turn {number}"
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise BrokenDialogueError(
            f"{where} has a role that is none of {', '.join(_ROLES)}",
            f"turn {number} has {quote(role)}",
        )
    if not isinstance(content, str):
        raise BrokenDialogueError(
            f"{where} holds a message whose {keys[1]} is no text",
            f"that of turn {number} is {kind_of_json(content)}",
        )
    if not content.strip():
        raise BrokenDialogueError(f"{where} holds a message without text", f"turn {number}")
    return Turn(_ROLES[role], content)


def cut_behind_answer(roles: Sequence[str], chars: Sequence[int], *, max_chars: int) -> int:
    """How many of a dialogue's turns stay where they may have so many characters in all: up to the
    last answer that fits, 0 where none does.
    """
    total = kept = 0
    for number, (role, count) in enumerate(zip(roles, chars, strict=True), start=1):
        total += count
        if total > max_chars:
            break
        if role == ASSISTANT:
            kept = number
    return kept
