# Shape letters: B batch, T time, D model width, V vocabulary.
"""Text from a model, token by token, with what it keeps of the tokens so far."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmscale.errors import ConfigError
from lmscale.model.family import Model
from lmscale.tokenizer.codec import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Raises ``ConfigError`` with every bad value at once."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach probability p (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """Over 1 makes tokens that occurred less likely (Keskar et al. 2019, CTRL, section 4.1)."""
    is_greedy: bool = False
    """Always the likeliest token; temperature, top_k and top_p change nothing then."""
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            problems.append(
                f"temperature = {self.temperature}: it must be more than 0. "
                "For the likeliest token use --greedy."
            )
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k = {self.top_k}: it must be at least 1, or left out.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top_p = {self.top_p}: it must be more than 0 and at most 1.")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            problems.append(
                f"repetition_penalty = {self.repetition_penalty}: it must be more than 0; "
                "1 changes nothing."
            )
        if not 0 <= self.seed < 2**63:
            problems.append(f"seed = {self.seed}: it must be from 0 to 2^63 - 1.")
        if problems:
            raise ConfigError(problems)


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


def encode_gap(
    tokenizer: Tokenizer, before: str, after: str, *, marks: Sequence[int], bos_id: int | None
) -> list[int]:
    """The prompt whose continuation is the text between two others, for a model that learned to
    fill the middle. ``marks``: the ids before prefix, suffix and middle.
    """
    prefix, suffix, middle = marks
    bos = [] if bos_id is None else [bos_id]
    texts = (tokenizer.encode(text).tolist() for text in (before, after))
    return [*bos, prefix, *next(texts), suffix, *next(texts), middle]


class Generation:
    """The continuation of a prompt, a text or its ids, up to ``max_tokens`` tokens; iterate to get
    their ids.

    ``bos_id`` is put before a text, as before the documents that the model was trained on, and with
    it the text may be empty; ids stay as they are. ``sees_prompt_whole``: as a model of objective
    ``prefix`` has learned to.

    ``stopped_by`` is None until the iteration has ended, then ``eos``, ``max_tokens`` or
    ``max_positions``. Only the tokenizer's own pieces and eos can come: neither the other special
    ids nor the embedding's padding rows, which no text has trained. Raises ``ConfigError`` for a
    prompt that is empty or too long.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        bos_id: int | None = None,
        sees_prompt_whole: bool = False,
    ) -> None:
        bos = [] if bos_id is None else [bos_id]
        is_text = isinstance(prompt, str)
        self.prompt = bos + tokenizer.encode(prompt).tolist() if is_text else [*map(int, prompt)]
        length, room = len(self.prompt), model.max_positions - len(self.prompt)
        problems = []
        if not model.generates(sees_prompt_whole=sees_prompt_whole):
            problems.append(
                f"The run's model is of the family {model.family}, which writes no text; generate "
                "needs one that does (decoder, recurrent)."
            )
        if not length:
            problems.append(
                "The prompt is empty, and the model has learned no beginning of a text (bos: none "
                "in its shards); give at least one character to go on from."
            )
        if room <= 0:
            problems.append(
                f"The prompt has {length} tokens, but the model sees at most "
                f"{model.max_positions} and needs one for its answer. "
                f"Shorten it to {model.max_positions - 1} tokens."
            )
        if max_tokens < 1:
            problems.append(f"max_tokens = {max_tokens}: it must be at least 1.")
        if problems:
            raise ConfigError(problems)
        self.stopped_by: str | None = None
        self._model = model.eval()
        self._read_prompt = self._model.read_prefix if sees_prompt_whole else self._model.extend
        self._sampling = sampling
        self._num_tokens = min(max_tokens, room)
        self._limit = "max_tokens" if max_tokens <= room else "max_positions"
        self._eos_id = tokenizer.eos_id
        self._barred_V = torch.arange(model.vocab_size) >= tokenizer.vocab_size
        self._barred_V[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.token_bytes() == 0)
        self._barred_V[self._eos_id] = False

    @torch.no_grad()
    def _last_logits(
        self, ids: Sequence[int], state: Any, read: Callable[[Tensor, Any], Tensor]
    ) -> Tensor:
        """Of the token behind ``ids``, f32 [1, V] on the CPU."""
        hidden_1TD = read(torch.tensor([ids], device=self._model.device), state)
        logits_1V = self._model.head(hidden_1TD[:, -1]).float().cpu()
        return logits_1V.masked_fill(self._barred_V, -math.inf)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator("cpu").manual_seed(self._sampling.seed)
        capacity = len(self.prompt) + self._num_tokens
        state = self._model.build_state(batch=1, capacity=capacity)
        seen_1V = torch.zeros(1, self._model.vocab_size, dtype=torch.bool)
        ids, read = self.prompt, self._read_prompt
        for _ in range(self._num_tokens):
            seen_1V[0, ids] = True
            logits_1V = self._last_logits(ids, state, read)
            token = int(next_tokens(logits_1V, seen_1V, self._sampling, generator))
            yield token
            if token == self._eos_id:
                self.stopped_by = "eos"
                return
            ids, read = [token], self._model.extend
        self.stopped_by = self._limit


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Pieces of text, as soon as the ids complete them, that join to the decoded text.

    A character may take up to four byte tokens; it is held back until complete. Bytes that
    cannot become a character any more are U+FFFD, as in ``Tokenizer.decode``.
    """
    pieces = (tokenizer.decode_bytes([token]) for token in ids)
    return codecs.iterdecode(pieces, "utf-8", errors="replace")
