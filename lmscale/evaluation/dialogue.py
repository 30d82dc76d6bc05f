"""A dialogue with a model: its turns, and what of them the model still sees. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from lmscale.errors import ConfigError
from lmscale.evaluation.prompts import Prompt, ask_turn
from lmscale.tokenizer.chat_template import ChatTemplate


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What was said so far: a question of the user and its answer by turns."""

    system: str = ""
    turns: tuple[tuple[str, str], ...] = ()

    def messages(self, question: str) -> list[dict[str, str]]:
        """All of it, with a new question behind."""
        said = [("system", self.system)] * bool(self.system)
        for asked, answered in self.turns:
            said += [("user", asked), ("assistant", answered)]
        return [{"role": role, "content": text} for role, text in [*said, ("user", question)]]

    def answered(self, question: str, answer: str) -> Dialogue:
        return replace(self, turns=(*self.turns, (question, answer)))

    def forget(self, count: int) -> Dialogue:
        """Without the oldest ``count`` questions and their answers."""
        return replace(self, turns=self.turns[count:])


def fit_question(
    template: ChatTemplate, dialogue: Dialogue, question: str, *, max_positions: int, reserve: int
) -> tuple[Prompt, int]:
    """What the model is asked, with room for an answer of ``reserve`` tokens; and how many of the
    oldest questions had to be left out with their answers for that.

    Raises ``ConfigError`` where the question alone leaves no such room.
    """
    most = max_positions - reserve
    for count in range(len(dialogue.turns) + 1):
        prompt = ask_turn(template, dialogue.forget(count).messages(question))
        if len(prompt.ids) <= most:
            return prompt, count
    raise ConfigError(
        f"That has {len(prompt.ids):,} tokens with what stands around it, and the model sees "
        f"{max_positions:,}, {reserve:,} of them for its answer. Say it in fewer words."
    )


Command = Literal["exit", "reset", "system", "help"]
HELP = """\
/reset         begin a new dialogue
/system TEXT   tell the model who it is, and begin anew; without TEXT: nothing
/help          this
/exit          end, as Ctrl-D does
Ctrl-C         cut an answer; the dialogue goes on
A line that is to begin with / as text: put a space before it."""


def parse_line(line: str) -> tuple[Command | None, str]:
    """A command and what stands behind it, or None and what is said.

    Raises ``ConfigError`` for an unknown command, and for what is no text.
    """
    if any("\ud800" <= each <= "\udfff" for each in line):
        raise ConfigError("That is no text: it has bytes that are not UTF-8. Say it again.")
    if not line.startswith("/"):
        return None, line.strip()
    word, _, rest = line[1:].strip().partition(" ")
    for name in _commands():
        if word == name:
            return name, rest.strip()
    known = ", ".join(f"/{name}" for name in _commands())
    raise ConfigError(
        f"/{word} is no command; there are {known}. If it is text, put a space before it."
    )


def _commands() -> Iterator[Command]:
    yield from ("help", "system", "reset", "exit")
