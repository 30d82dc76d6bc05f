# Shape letters: B batch, T time, D model width, V vocabulary.
"""Text from a model, token by token, with what it keeps of the tokens so far."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lmscale.errors import ConfigError
from lmscale.evaluation.prompts import Prompt, describe_mute, find_misfits
from lmscale.evaluation.sampling import Sampling
from lmscale.model.family import CrossModel, Model
from lmscale.tokenizer.base import Tokenizer


def next_tokens(
    logits: Tensor, occurred: Tensor, sampling: Sampling, generator: torch.Generator
) -> Tensor:
    """Draw one id per row, int64 [B], from logits [B, V], -inf for ids that must not come.

    ``occurred``: bool [B, V]. All are on the CPU: a seed gives the same text on every device.
    """
    logits = penalise_repetition(logits.float(), occurred, sampling.repetition_penalty)
    if sampling.is_greedy:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def penalise_repetition(logits: Tensor, occurred: Tensor, penalty: float) -> Tensor:
    """Ids that occurred: positive logits divided by the penalty, negative ones multiplied."""
    if penalty == 1:
        return logits
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(occurred, lowered, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest become -inf; exactly k stay, ties going to the lower id."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[:, k:], -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest ids whose probabilities reach p stay; the rest become -inf."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    sorted = logits.gather(-1, order).softmax(-1)
    before = sorted.cumsum(-1) - sorted  # probability of everything likelier
    is_dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= p)
    is_dropped.scatter_(-1, order[:, :1], False)
    return logits.masked_fill(is_dropped, -math.inf)


class Generation:
    """The continuation of a prompt, or of a text or ids as they are, up to ``max_tokens`` tokens;
    iterate to get their ids.

    ``stopped_by`` is None until the iteration has ended, then ``eos`` (or another one of the
    prompt's ends), ``max_tokens`` or ``max_positions``. Only the tokenizer's own pieces, those ends
    and what the prompt allows can come: neither the other special ids nor the embedding's padding
    rows, which no text has trained. Raises ``ConfigError`` for a prompt that is empty or too long.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        prompt: Prompt | str | Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
    ) -> None:
        if isinstance(prompt, str):
            prompt = tokenizer.encode(prompt).tolist()
        if not isinstance(prompt, Prompt):
            prompt = Prompt(ids=tuple(map(int, prompt)))
        self.prompt = prompt
        room = model.max_positions - len(prompt.ids)
        if problems := [*_find_problems(model, prompt, max_tokens)]:
            raise ConfigError(problems)
        self.stopped_by: str | None = None
        self.tokenizer = tokenizer
        self._model = model.eval()
        self._read_prompt = self._model.read_prefix if prompt.sees_whole else self._model.extend
        self._sampling = sampling
        self._num_tokens = min(max_tokens, room)
        self._limit = "max_tokens" if max_tokens <= room else "max_positions"
        self.ends = prompt.ends | {tokenizer.eos_id}
        self._barred_V = find_barred(model, tokenizer, self.ends | prompt.writes)

    @torch.no_grad()
    def _last_logits(
        self, ids: Sequence[int], state: Any, read: Callable[[Tensor, Any], Tensor]
    ) -> Tensor:
        """Of the token behind ``ids``, f32 [1, V] on the CPU."""
        hidden_1TD = read(torch.tensor([ids], device=self._model.device), state)
        logits_1V = self._model.head(hidden_1TD[:, -1]).float().cpu()
        return logits_1V.masked_fill(self._barred_V, -math.inf)

    @torch.no_grad()
    def _read_source(self, source: Sequence[int], state: Any) -> None:
        assert isinstance(self._model, CrossModel)  # else the prompt is refused
        self._model.read_source(torch.tensor([source], device=self._model.device), state)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator("cpu").manual_seed(self._sampling.seed)
        ids: Sequence[int] = self.prompt.ids
        state = self._model.build_state(batch=1, capacity=len(ids) + self._num_tokens)
        if self.prompt.source is not None:
            self._read_source(self.prompt.source, state)
        seen_1V = torch.zeros(1, self._model.vocab_size, dtype=torch.bool)
        read = self._read_prompt
        for _ in range(self._num_tokens):
            seen_1V[0, list(ids)] = True
            logits_1V = self._last_logits(ids, state, read)
            token = int(next_tokens(logits_1V, seen_1V, self._sampling, generator))
            yield token
            if token in self.ends:
                self.stopped_by = "eos"
                return
            ids, read = [token], self._model.extend
        self.stopped_by = self._limit


def find_barred(model: Model, tokenizer: Tokenizer, may_come: Iterable[int]) -> Tensor:
    """Ids that no text has, bool [V] on the CPU: the tokenizer's special ones and the embedding's
    padding rows, but for those that ``may_come``.
    """
    barred_V = torch.arange(model.vocab_size) >= tokenizer.vocab_size
    barred_V[: tokenizer.vocab_size] = torch.from_numpy(~tokenizer.is_writable())
    barred_V[list(may_come)] = False
    return barred_V


def _find_problems(model: Model, prompt: Prompt, max_tokens: int) -> Iterator[str]:
    reads = prompt.source is not None
    if not model.generates(sees_prompt_whole=prompt.sees_whole) or (
        reads != isinstance(model, CrossModel)
    ):
        yield describe_mute(model.family)
    yield from find_misfits(prompt, max_tokens, max_positions=model.max_positions)
    # On a GPU an id without a vector would end all that the process does there, not only this.
    wrong = [n for n in (*prompt.ids, *(prompt.source or ())) if not 0 <= n < model.vocab_size]
    if wrong:
        yield (
            f"The prompt's id {wrong[0]} is none of the model's, 0 to {model.vocab_size - 1:,}. "
            "Take the run's own tokenizer."
        )


def stream_answer(generation: Generation) -> Iterator[str]:
    """The text of a continuation as it comes, without what ends it."""
    tokens = (token for token in generation if token not in generation.ends)
    prompt = generation.prompt
    pieces = stream_text(generation.tokenizer, tokens, shows_special=bool(prompt.writes))
    return end_before(pieces, prompt.stops) if prompt.stops else pieces


def end_before(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text up to the first of some texts, held back where it may be the beginning of one."""
    held = ""
    for piece in pieces:
        held += piece
        if found := [place for stop in stops if (place := held.find(stop)) >= 0]:
            yield held[: min(found)]
            return
        keep = max(
            size
            for stop in stops
            for size in range(min(len(stop), len(held) + 1))
            if held.endswith(stop[:size])
        )
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def stream_text(
    tokenizer: Tokenizer, ids: Iterable[int], *, shows_special: bool = False
) -> Iterator[str]:
    """Pieces of text, as soon as the ids complete them, that join to the decoded text.

    A character may take up to four byte tokens; it is held back until complete. Bytes that
    cannot become a character any more are U+FFFD, as in ``Tokenizer.decode``.
    """
    pieces = (tokenizer.decode_bytes([token], shows_special=shows_special) for token in ids)
    return codecs.iterdecode(pieces, "utf-8", errors="replace")
