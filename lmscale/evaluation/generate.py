# Shape letters: B batch, T time, V vocabulary.
"""Text from a model, token by token, with what it keeps of the tokens so far; no character of it
is ever broken.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lmscale.config.kinds import Ability
from lmscale.errors import ConfigError
from lmscale.evaluation.sampling import Sampling, next_tokens
from lmscale.model.family import Model
from lmscale.tokenizer import Tokenizer


class Generation:
    """The continuations of one prompt; iterate to get the rows' next ids, int64 [B] on the CPU.

    Up to ``max_tokens`` tokens; a row that has ended goes on as eos. ``stopped_by`` is None until
    the iteration has ended, then ``eos`` (every row), ``max_tokens`` or ``max_positions``. Only the
    tokenizer's own pieces and eos can come: neither the other special ids nor the embedding's
    padding rows, which no text has trained. Raises ``ConfigError`` for a prompt that is empty or
    too long.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        prompt: str,
        sampling: Sampling,
        *,
        max_tokens: int,
        batch: int = 1,
    ) -> None:
        self.prompt = [int(token) for token in tokenizer.encode(prompt)]
        length, room = len(self.prompt), model.max_positions - len(self.prompt)
        problems = []
        if Ability.CAUSAL not in model.offers:
            problems.append(f"A {type(model).__name__} is no causal model; it writes no text.")
        if not length:
            problems.append("The prompt is empty; give at least one character to go on from.")
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
        self._prompt_BT = torch.tensor([self.prompt] * batch)
        self._sampling = sampling
        self._num_tokens = min(max_tokens, room)
        self._limit = "max_tokens" if max_tokens <= room else "max_positions"
        self._eos_id = tokenizer.eos_id
        self._barred_V = torch.arange(model.vocab_size) >= tokenizer.vocab_size
        self._barred_V[[tokenizer.bos_id, tokenizer.pad_id, tokenizer.unk_id]] = True

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator("cpu").manual_seed(self._sampling.seed)
        batch, length = self._prompt_BT.shape
        device = self._model.device
        state = self._model.build_state(batch=batch, capacity=length + self._num_tokens)
        seen_BV = torch.zeros(batch, self._model.vocab_size, dtype=torch.bool)
        seen_BV.scatter_(1, self._prompt_BT, True)
        ids_BT = self._prompt_BT
        has_ended_B = torch.zeros(batch, dtype=torch.bool)
        for _ in range(self._num_tokens):
            logits_BV = self._last_logits(ids_BT.to(device), state)
            logits_BV = logits_BV.masked_fill(self._barred_V, -math.inf)
            next_B = next_tokens(logits_BV, seen_BV, self._sampling, generator)
            next_B = torch.where(has_ended_B, self._eos_id, next_B)
            yield next_B
            has_ended_B |= next_B == self._eos_id
            if has_ended_B.all():
                self.stopped_by = "eos"
                return
            seen_BV.scatter_(1, next_B[:, None], True)
            ids_BT = next_B[:, None]
        self.stopped_by = self._limit

    @torch.no_grad()
    def _last_logits(self, ids_BT: Tensor, state: Any) -> Tensor:
        hidden_BTD = self._model.extend(ids_BT, state)
        return self._model.head(hidden_BTD[:, -1]).float().cpu()


class TextStream:
    """Turns ids, one by one, into pieces of text whose concatenation is their decoded text.

    A character may take up to four byte tokens; it is held back until complete. Bytes that
    cannot become a character any more are U+FFFD, as in ``Tokenizer.decode``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The text completed by ``token``; often empty inside a character."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """The rest of the text: U+FFFD for an unfinished character, else empty."""
        return self._decoder.decode(b"", final=True)
