"""A law of a team's own: L = E + A / N^alpha + B / D^beta, fitted to the losses of small runs.

As Hoffmann et al. 2022 fit theirs (approach 3, equation 3): the Huber loss, of width 1e-3, of the
difference of the logarithms, from many beginnings. How sure a prediction is, is found by fitting
the law to draws of the same runs (the bootstrap, as Besiroglu et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from lmscale.errors import DataError
from lmscale.plan.losses import Law, Measured

HUBER = 1e-3
MIN_SIZES = 3
DRAWS = 200
INTERVAL = (0.05, 0.95)
_BOUNDS = (0.02, 3.0)  # of both exponents


class Point(NamedTuple):
    """What a run has come to."""

    parameters: float
    tokens: float
    loss: float  # nats per token


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The law, and how far the runs lie from it."""

    law: Law
    residuals: tuple[float, ...]
    """log(measured) - log(law) of each point, in their order."""
    draws: tuple[Law, ...]
    """The law of each draw of the points."""

    def predict(self, parameters: float, tokens: float) -> Prediction:
        """By the law, and an interval of nine in ten: of the draws' laws and of single runs."""
        noise = np.random.default_rng(0).choice(self.residuals, len(self.draws))
        drawn = [law.loss(parameters, tokens) for law in self.draws] * np.exp(noise)
        low, high = np.quantile(drawn, INTERVAL).tolist()
        return Prediction(
            loss=self.law.loss(parameters, tokens),
            low=low,
            high=high,
            doubts=tuple(self.law.measured.describe_doubts(parameters, tokens)),
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Nats per token, and where nine in ten fall."""

    loss: float
    low: float
    high: float
    doubts: tuple[str, ...]


def fit_law(points: Sequence[Point], *, draws: int = DRAWS, seed: int = 1) -> Fit:
    """Raises ``DataError`` for too few sizes. Of runs over two numbers of tokens or one the law has
    no part for tokens, and is of these alone.
    """
    table = np.array(points, dtype=np.float64)
    sizes, lengths = (len(np.unique(table[:, column])) for column in (0, 1))
    if sizes < MIN_SIZES:
        raise DataError(
            f"the finished runs have {sizes} different sizes; a law needs {MIN_SIZES} at least."
        )
    has_tokens = lengths >= MIN_SIZES and len(points) >= 5
    problem = _Problem.of(table, has_tokens=has_tokens)
    best = problem.solve(table, problem.beginnings())
    law = problem.law(best)
    generator = np.random.default_rng(seed)
    laws = []
    while len(laws) < draws:
        drawn = table[generator.integers(len(table), size=len(table))]
        if len(np.unique(drawn[:, 0])) < MIN_SIZES:
            continue
        if has_tokens and len(np.unique(drawn[:, 1])) < 2:
            continue
        laws.append(problem.law(problem.solve(drawn, [best])))
    residuals = np.log(table[:, 2]) - [math.log(law.loss(n, d)) for n, d, _ in points]
    return Fit(law=law, residuals=tuple(residuals.tolist()), draws=tuple(laws))


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Least squares in (log E, log A', alpha, log B', beta): A' and B' are what a run in the middle
    of the points lacks, so that they hardly depend on the exponents.
    """

    middle: tuple[float, float]  # parameters, tokens
    highest: float
    lowest: float
    has_tokens: bool
    measured: Measured

    @classmethod
    def of(cls, table: np.ndarray, *, has_tokens: bool) -> _Problem:
        parameters, tokens, losses = table.T
        measured = Measured(
            source="this ladder",
            text="its own",
            parameters=(float(parameters.min()), float(parameters.max())),
            tokens=(float(tokens.min()), float(tokens.max())),
        )
        middle = np.exp(np.log(table[:, :2]).mean(axis=0)).tolist()
        return cls(
            middle=(middle[0], middle[1]),
            highest=float(losses.max()),
            lowest=float(losses.min()),
            has_tokens=has_tokens,
            measured=measured,
        )

    def beginnings(self) -> list[np.ndarray]:
        starts = product((0.2, 0.6, 0.9), (0.15, 0.5), (0.15, 0.5) if self.has_tokens else (0.5,))
        found = []
        for share, alpha, beta in starts:
            rest = (self.highest - share * self.lowest) / 2
            start = [math.log(share * self.lowest), math.log(rest), alpha, math.log(rest), beta]
            found.append(np.array(start[: 5 if self.has_tokens else 3]))
        return found

    def _logs(self, values: np.ndarray, table: np.ndarray) -> np.ndarray:
        parameters, tokens = np.log(table[:, 0] / self.middle[0]), np.log(table[:, 1])
        total = np.exp(values[0]) + np.exp(values[1] - values[2] * parameters)
        if self.has_tokens:
            total += np.exp(values[3] - values[4] * (tokens - math.log(self.middle[1])))
        return np.log(total)

    def solve(self, table: np.ndarray, beginnings: Sequence[np.ndarray]) -> np.ndarray:
        """The best of what the beginnings lead to."""
        from scipy.optimize import least_squares

        least, most = math.log(1e-3), math.log(10 * self.highest)
        low = np.array([least, least, _BOUNDS[0], least, _BOUNDS[0]])
        high = np.array([math.log(self.lowest), most, _BOUNDS[1], most, _BOUNDS[1]])
        count = len(beginnings[0])
        bounds = (low[:count], high[:count])
        measured = np.log(table[:, 2])
        found = [
            least_squares(
                lambda values: self._logs(values, table) - measured,
                np.clip(start, bounds[0] + 1e-9, bounds[1] - 1e-9),
                bounds=bounds,
                loss="huber",
                f_scale=HUBER,
                x_scale=0.1,
                max_nfev=300,
            )
            for start in beginnings
        ]
        return min(found, key=lambda result: result.cost).x

    def law(self, values: np.ndarray) -> Law:
        log_e, log_a, alpha, *of_tokens = values.tolist()
        log_b, beta = of_tokens or (-math.inf, 1.0)
        return Law(
            name="this ladder's",
            floor=math.exp(log_e),
            of_parameters=math.exp(log_a + alpha * math.log(self.middle[0])),
            of_tokens=math.exp(log_b + beta * math.log(self.middle[1])),
            alpha=alpha,
            beta=beta,
            measured=self.measured,
        )
