"""Texts that tasks have a model write: what is asked, and what all ranks have written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lmscale.errors import ConfigError, DataError
from lmscale.evaluation.generate import Generation
from lmscale.evaluation.prompts import Prompt
from lmscale.evaluation.sampling import Sampling
from lmscale.model.family import Model
from lmscale.ranks.collectives import gather_json, sum_float64
from lmscale.ranks.mesh import Axis
from lmscale.tokenizer.base import Tokenizer
from lmscale.watch import heartbeat

MAX_TOKENS = 256  # of a text to which a task sets no bound: lm-eval's own
_BOUNDS = ("max_gen_toks", "max_new_tokens", "max_tokens")
_NUMBERS = ("temperature", "top_k", "top_p", "repetition_penalty")
_KNOWN = ("until", "do_sample", *_BOUNDS, *_NUMBERS)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A context to go on from, and where the text ends that is written behind it."""

    ids: tuple[int, ...]
    max_tokens: int
    until: tuple[str, ...]  # texts before the first of which it ends
    sampling: Sampling

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Question:
        return cls(
            ids=tuple(tree["ids"]),
            max_tokens=tree["max_tokens"],
            until=tuple(tree["until"]),
            sampling=Sampling(**tree["sampling"]),
        )


def plan_question(
    ids: Sequence[int], settings: Mapping[str, Any], *, max_positions: int, number: int
) -> tuple[Question, bool, bool]:
    """What a task's ``generation_kwargs`` ask for, whether the context was cut, on the left, and
    whether the text gets less room than asked for: it has at most half of what the model sees.

    ``number`` seeds a text that is drawn. Raises ``DataError`` for settings that mean nothing
    here.
    """
    if unknown := sorted(set(settings) - set(_KNOWN)):
        raise DataError(
            f"generation_kwargs: {', '.join(unknown)} cannot be asked of a run's model. Known: "
            f"{', '.join(_KNOWN)}."
        )
    given = settings.get("until") or ()
    until = (given,) if isinstance(given, str) else given
    if not (isinstance(until, list | tuple) and all(isinstance(each, str) for each in until)):
        raise DataError(
            f"generation_kwargs: until = {given!r} is neither a text nor a list of them."
        )
    for name in (*_BOUNDS, *_NUMBERS):
        _check_number(name, settings.get(name))
    wanted = next((int(settings[name]) for name in _BOUNDS if settings.get(name)), MAX_TOKENS)
    max_tokens = max(1, min(wanted, max_positions // 2))
    kept = tuple(ids[-(max_positions - max_tokens) :])
    temperature = float(settings.get("temperature") or 0.0)
    is_greedy = not settings.get("do_sample", temperature > 0) or not temperature
    try:
        sampling = Sampling(
            temperature=temperature or 1.0,
            top_k=settings.get("top_k") or None,
            top_p=settings.get("top_p") or None,
            repetition_penalty=float(settings.get("repetition_penalty") or 1.0),
            is_greedy=is_greedy,
            seed=number,
        )
    except ConfigError as error:
        raise DataError([f"generation_kwargs: {problem}" for problem in error.problems]) from None
    question = Question(ids=kept, max_tokens=max_tokens, until=tuple(until), sampling=sampling)
    return question, len(kept) < len(ids), max_tokens < wanted


def _check_number(name: str, value: Any) -> None:
    """None leaves it out. Raises ``DataError``."""
    is_whole = name in (*_BOUNDS, "top_k")
    kind = int if is_whole else int | float
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if value is not None and not (is_number and value >= 0):
        asked = "a whole number" if is_whole else "a number"
        raise DataError(f"generation_kwargs: {name} = {value!r} is not {asked} of at least 0.")


class _Writing:
    """One question's text as it grows."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, question: Question, *, sees_whole: bool
    ) -> None:
        generation = Generation(
            model,
            tokenizer,
            Prompt(ids=question.ids, sees_whole=sees_whole),
            question.sampling,
            max_tokens=question.max_tokens,
        )
        self._tokenizer, self._question = tokenizer, question
        self._tokens: Iterator[int] = iter(generation)
        self._ids: list[int] = []
        self.text, self.is_done = "", False

    def grow(self) -> None:
        """By one token, which is one pass through the model."""
        token = next(self._tokens)
        if token == self._tokenizer.eos_id:
            self.is_done = True
            return
        self._ids.append(token)
        whole = self._tokenizer.decode(self._ids)
        ends = [place for stop in self._question.until if stop and (place := whole.find(stop)) >= 0]
        self.text = whole[: min(ends)] if ends else whole
        self.is_done = bool(ends) or len(self._ids) == self._question.max_tokens


def write_texts(
    model: Model,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    data: Axis,
    sees_whole: bool,
    advance: Callable[[float], None] = lambda questions: None,
    between_batches: Callable[[], None] = lambda: None,
) -> list[str]:
    """The texts behind all contexts, in their order, on every rank.

    The ranks write one text each at a time, and do equally many passes through the model, as ZeRO-3
    needs: a rank whose text is complete does idle ones until all are. ``sees_whole``: the model was
    trained to see a context as a whole.
    """
    own: list[tuple[int, str]] = []
    for first in range(0, len(questions), data.size):
        number = first + data.rank
        writing = None
        if number < len(questions):
            writing = _Writing(model, tokenizer, questions[number], sees_whole=sees_whole)
        is_growing = writing is not None
        while sum_float64([float(is_growing)])[0]:
            if writing is not None and is_growing:
                writing.grow()
                is_growing = not writing.is_done
            else:
                _idle(model, tokenizer.eos_id)
            heartbeat.tick()
            between_batches()
        if writing is not None:
            own.append((number, writing.text))
        advance(min(data.size, len(questions) - first))
    texts = {number: text for rows in gather_json(own) for number, text in rows}
    return [texts[number] for number in range(len(questions))]


@torch.no_grad()
def _idle(model: Model, token: int) -> None:
    state = model.build_state(batch=1, capacity=1)
    model.head(model.extend(torch.tensor([[token]], device=model.device), state)[:, -1])
