"""How a next token is drawn, as a person asks for it. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
