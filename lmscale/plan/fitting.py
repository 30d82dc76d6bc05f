"""Measured phases → seconds of each of their counts, by non-negative least squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmscale.plan.calibration import PhaseCosts
from lmscale.plan.counts import OF_STAGE, PHASES, PhaseName

ROUNDS = 2000


@dataclass(frozen=True, kw_only=True)
class MeasuredPhase:
    """One phase of a measured step."""

    phase: str
    stage: int
    counts: Mapping[str, float]
    known_seconds: float
    """Of its products, which were measured by themselves."""
    seconds: float


def fit_phases(rows: Sequence[MeasuredPhase]) -> tuple[PhaseCosts, ...]:
    """For every phase what its counts cost, those of ``OF_STAGE`` at each stage by itself."""
    return tuple(_fit_phase(phase, [row for row in rows if row.phase == phase]) for phase in PHASES)


def _fit_phase(phase: PhaseName, rows: Sequence[MeasuredPhase]) -> PhaseCosts:
    named = [
        {_column(name, row.stage): count for name, count in row.counts.items() if count}
        for row in rows
    ]
    names = sorted({name for row in named for name in row})
    scale = {name: max(row.get(name, 0.0) for row in named) for name in names}
    # A row counts by its relative error; a column is scaled to at most 1.
    matrix = [
        [row.get(name, 0.0) / scale[name] / measured.seconds for name in names]
        for row, measured in zip(named, rows, strict=True)
    ]
    wanted = [max(0.0, row.seconds - row.known_seconds) / row.seconds for row in rows]
    found = non_negative_least_squares(matrix, wanted)
    costs = {name: value / scale[name] for name, value in zip(names, found, strict=True)}
    common = {name: cost for name, cost in costs.items() if "@" not in name}
    stages = {
        str(stage): {
            name.partition("@")[0]: cost
            for name, cost in costs.items()
            if name.endswith(f"@{stage}")
        }
        for stage in sorted({row.stage for row in rows})
    }
    return PhaseCosts(phase=phase, seconds=common, stage_seconds=stages)


def _column(name: str, stage: int) -> str:
    return f"{name}@{stage}" if name in OF_STAGE else name


def non_negative_least_squares(
    matrix: Sequence[Sequence[float]], wanted: Sequence[float], rounds: int = ROUNDS
) -> list[float]:
    """x ≥ 0 of the least |matrix · x - wanted|², by coordinate descent (Franc et al. 2005)."""
    rows, goal = np.asarray(matrix, dtype=float), np.asarray(wanted, dtype=float)
    gram, gradient = rows.T @ rows, -(rows.T @ goal)
    x = np.zeros(rows.shape[1])
    for _ in range(rounds):
        largest = 0.0
        for i in np.flatnonzero(np.diag(gram) > 0):
            change = max(0.0, x[i] - gradient[i] / gram[i, i]) - x[i]
            x[i] += change
            gradient += change * gram[i]
            largest = max(largest, abs(change))
        if largest < 1e-9:
            break
    return x.tolist()
