"""The loss to expect, by published laws: what a next-token model of so many parameters has learned
from so many tokens.

Every law is of its own text, tokenizer and architecture, so that between two runs of a team it says
more of their difference than of either's loss. A ladder of the team's own (ladder.py) says both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, table 3: at the best division of a budget
# Beyond its range by this factor a law says nothing: a choice. Extrapolations of a decade are what
# the papers themselves draw.
FAR = 10.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Where a law comes from, and what it was measured on."""

    source: str
    text: str
    parameters: tuple[float, float]
    tokens: tuple[float, float]
    vocab_size: int | None = None

    def describe_doubts(self, parameters: float, tokens: float) -> Iterator[str]:
        """Where the law is asked for what nobody has measured it at."""
        for value, (low, high), what in (
            (parameters, self.parameters, "parameters"),
            (tokens, self.tokens, "tokens"),
        ):
            if not low <= value <= high:
                yield f"{value:.3g} {what} are outside its {low:.3g} to {high:.3g}"

    def says(self, nats: float, parameters: float, tokens: float) -> float | None:
        """The loss, or None where it means nothing: far outside the range, or outside it and worse
        than a guess among all tokens.
        """
        ranges = ((parameters, self.parameters), (tokens, self.tokens))
        is_far = any(not low / FAR <= value <= high * FAR for value, (low, high) in ranges)
        is_guess = self.vocab_size is not None and nats > math.log(self.vocab_size)
        is_outside = any(self.describe_doubts(parameters, tokens))
        return None if is_far or (is_guess and is_outside) else nats


@dataclass(frozen=True, kw_only=True)
class Law:
    """L = E + A / N^alpha + B / D^beta, in nats per token; N parameters, D tokens."""

    name: str
    floor: float  # E
    of_parameters: float  # A
    of_tokens: float  # B
    alpha: float
    beta: float
    measured: Measured

    def loss(self, parameters: float, tokens: float) -> float:
        """Of all parameters, embeddings included."""
        lacking = self.of_parameters / parameters**self.alpha
        return self.floor + lacking + self.of_tokens / tokens**self.beta

    def best_parameters(self, flops: float) -> float:
        """For a budget of 6 · N · D FLOPs: Hoffmann et al. 2022, equation 4."""
        total = self.alpha + self.beta
        return self._ratio * (flops / 6) ** (self.beta / total)

    def best_parameters_of_tokens(self, tokens: float) -> float:
        """The model whose budget is best spent on just so many tokens."""
        return self._ratio * (self._ratio * tokens) ** (self.beta / self.alpha)

    @property
    def _ratio(self) -> float:  # G
        ratio = self.alpha * self.of_parameters / (self.beta * self.of_tokens)
        return ratio ** (1 / (self.alpha + self.beta))


HOFFMANN = Law(
    name="Chinchilla",
    floor=1.6934,
    of_parameters=406.4,
    of_tokens=410.7,
    alpha=0.3392,
    beta=0.2849,
    measured=Measured(
        source="Hoffmann et al. 2022, approach 3, unrounded as Besiroglu et al. 2024 quote its TeX",
        text="MassiveText, a SentencePiece vocabulary of 32,000",
        vocab_size=32_000,
        parameters=(70e6, 16e9),
        tokens=(5e9, 500e9),
    ),
)
BESIROGLU = Law(
    name="Chinchilla, fitted anew",
    floor=1.8172,
    of_parameters=482.01,
    of_tokens=2085.43,
    alpha=0.3478,
    beta=0.3658,
    measured=replace(HOFFMANN.measured, source="Besiroglu et al. 2024, table 1"),
)
MUENNIGHOFF = Law(
    name="data-constrained",
    floor=math.exp(0.6254804),
    of_parameters=math.exp(6.255414),
    of_tokens=math.exp(7.3049974),
    alpha=0.3526596,
    beta=0.3526596,
    measured=Measured(
        source="Muennighoff et al. 2023, appendix A",
        text="C4, GPT-2's vocabulary of 50,257",
        vocab_size=50_257,
        parameters=(7e6, 9e9),
        tokens=(100e6, 900e9),
    ),
)
LAWS = (HOFFMANN, BESIROGLU, MUENNIGHOFF)

KAPLAN = Measured(
    source="Kaplan et al. 2020, equation 1.5 with table 2",
    text="WebText2, GPT-2's vocabulary of 50,257",
    vocab_size=50_257,
    parameters=(768, 1.5e9),
    tokens=(22e6, 23e9),
)
_KAPLAN_N, _KAPLAN_ALPHA_N = 6.4e13, 0.076
_KAPLAN_D, _KAPLAN_ALPHA_D = 1.8e13, 0.103


def kaplan_loss(non_embedding: float, tokens: float) -> float:
    """Nats per token, by the parameters without embeddings and positions, and the different tokens
    of a data set on which a model was trained until it got no better.
    """
    size = (_KAPLAN_N / non_embedding) ** (_KAPLAN_ALPHA_N / _KAPLAN_ALPHA_D)
    return (size + _KAPLAN_D / tokens) ** _KAPLAN_ALPHA_D


@dataclass(frozen=True, kw_only=True)
class ExpectedLoss:
    """What a law says of a run."""

    law: str
    nats_per_token: float | None
    """None where the law means nothing (``Measured.says``)."""
    best_parameters: float | None
    """Of a model that would make the most of the same FLOPs, by this law; None: it says nothing."""
    measured: Measured
    doubts: tuple[str, ...]


def expect_losses(
    *, parameters: float, non_embedding: float, tokens: float, effective_tokens: float
) -> tuple[ExpectedLoss, ...]:
    """What each law says of a run over ``tokens``, which are worth ``effective_tokens`` different
    ones (repetition.py).
    """
    told = [
        ExpectedLoss(
            law=law.name,
            nats_per_token=law.measured.says(
                law.loss(parameters, effective_tokens), parameters, effective_tokens
            ),
            best_parameters=law.best_parameters(6 * parameters * tokens),
            measured=law.measured,
            doubts=tuple(law.measured.describe_doubts(parameters, effective_tokens)),
        )
        for law in LAWS
    ]
    kaplan = ExpectedLoss(
        law="Kaplan",
        nats_per_token=KAPLAN.says(
            kaplan_loss(non_embedding, effective_tokens), non_embedding, effective_tokens
        ),
        best_parameters=None,
        measured=KAPLAN,
        doubts=tuple(KAPLAN.describe_doubts(non_embedding, effective_tokens)),
    )
    return (*told, kaplan)
