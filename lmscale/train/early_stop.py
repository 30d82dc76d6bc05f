"""Early stopping (Prechelt 1998): a run ends, as finished, once a held-out figure gets no better.

The decision is a function of the figures that the run has recorded and of its settings, nothing
else: every start of the run reads the figures up to its own step, and measures the one of that step
if it is owed. So a run that was killed, rewound or given other ranks ends where it would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lmscale.checkpoint.retention import read_figures
from lmscale.config import RunConfig
from lmscale.config.training import EarlyStopConfig
from lmscale.ranks.collectives import broadcast_object
from lmscale.ranks.ranks import Ranks
from lmscale.runs.attempts import EARLY


def find_early_stop(figures: Mapping[int, float], stop: EarlyStopConfig) -> str | None:
    """Why a run whose newest figure is the last of ``figures`` (step → figure) ends with it.

    A figure that is not finite is no better than any other.
    """
    sign = 1.0 if stop.mode == "min" else -1.0
    best, best_step, num_worse = math.inf, 0, 0
    for step in sorted(figures):
        value = sign * figures[step]
        if math.isfinite(value) and value < best - stop.min_delta:
            best, best_step, num_worse = value, step, 0
        else:
            num_worse += 1
    if num_worse < stop.patience:
        return None
    moved = "fall" if stop.mode == "min" else "rise"
    by = f" by more than {stop.min_delta:g}" if stop.min_delta else ""
    since = f"since step {best_step} ({sign * best:.6g})" if best_step else "at all"
    return f"{EARLY} at step {max(figures)}: {stop.metric} did not {moved}{by} {since}"


def read_stop_figures(config: RunConfig, ranks: Ranks, *, last_step: int) -> dict[int, float]:
    """The figures of ``evaluation.stop.metric`` up to a step, as rank 0 sees them, on all ranks."""
    metric = config.evaluation.stop.metric
    if not metric or not last_step:
        return {}
    figures = read_figures(config.folder, metric) if ranks.is_first else {}
    pairs = [[step, value] for step, value in figures.items() if step <= last_step]
    return {step: value for step, value in broadcast_object(pairs)}
