"""Logits → the next token: penalty, temperature, top-k, top-p, then a draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lmscale.errors import ConfigError


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

    ``occurred``: bool [B, V]. All tensors are on the CPU, so that a seed gives the same text on
    every device.
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
