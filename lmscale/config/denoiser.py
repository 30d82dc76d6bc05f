"""How many tokens of a text become spans to predict: the arithmetic of T5 and UL2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from lmscale.config.base import Section

MODES = ("R", "S", "X")  # regular, sequential and extreme denoising


class DenoiserConfig(Section):
    """Spans that are left out of a text, each for a sentinel, and predicted behind it."""

    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that lie in spans."""
    mean_span: float = Field(default=3.0, ge=1, le=1e9)
    """Mean tokens of a span. One longer than the share makes the end of the text the only span: the
    text goes on from a prefix.
    """
    mode: Literal["", "R", "S", "X"] = ""
    """Id that the model reads before the text: of regular, sequential or extreme denoising."""
    weight: float = Field(default=1.0, gt=0, le=1e9)
    """Share of the windows, relative to the other denoisers."""

    def plan(self, tokens: int) -> tuple[int, int]:
        """Tokens in spans, and spans, of a text of so many tokens, at least 2; as T5's
        ``random_spans_noise_mask`` rounds them.
        """
        noise = min(max(round(tokens * self.rate), 1), tokens - 1)
        spans = max(round(noise / self.mean_span), 1)
        return noise, min(spans, noise, tokens - noise)

    def lengths(self, tokens: int) -> tuple[int, int]:
        """Tokens that are read and written of such a text, each with an end."""
        noise, spans = self.plan(tokens)
        return tokens - noise + spans + 1 + bool(self.mode), noise + spans + 1


def pair_lengths(denoisers: Sequence[DenoiserConfig], tokens: int) -> tuple[int, int]:
    """The most tokens that any of them reads, and writes, of a text of so many."""
    read, written = zip(*(denoiser.lengths(tokens) for denoiser in denoisers), strict=True)
    return max(read), max(written)


def plan_raw_tokens(denoisers: Sequence[DenoiserConfig], sequence_length: int) -> int:
    """The longest text of which none of them makes more than ``sequence_length`` tokens.

    568 for T5's and 512, which become 512 and 114: no position is left empty (its
    ``random_spans_helper``). At least 2, whatever comes of them.
    """
    bounds = (  # a share of a text is read, the rest written, and a sentinel for each span both
        sequence_length / (max(1 - d.rate, d.rate) + min(d.rate / d.mean_span, d.rate, 1 - d.rate))
        for d in denoisers
    )
    tokens = int(min(bounds)) + 4
    while tokens > 2 and max(pair_lengths(denoisers, tokens)) > sequence_length:
        tokens -= 1
    return max(tokens, 2)
