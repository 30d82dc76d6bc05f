"""Early stopping: a run ends, as finished, once a held-out figure gets no better (the patience of
Goodfellow et al. 2016, Deep Learning, algorithm 7.1).

The decision is a function of the figures that the run has recorded and of its settings, nothing
else: every start of the run reads the figures up to its own step, and measures the one of that step
if it is owed. So a run that was killed or rewound ends where it would have. That holds bit by bit
on as many ranks; on others as far as the figures are the same, whose sums are over other parts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from lmscale.checkpoint.retention import read_figures
from lmscale.config import RunConfig
from lmscale.config.training import EarlyStopConfig
from lmscale.files.printing import count_of
from lmscale.ranks.collectives import broadcast_object, failing_together
from lmscale.ranks.ranks import Ranks
from lmscale.runs.goodput import EARLY

GO_ON = "More evaluation.stop.patience, or --set evaluation.stop.metric= for none, goes on."
logger = logging.getLogger(__name__)


def find_early_stop(
    figures: Mapping[int, float], stop: EarlyStopConfig, *, step: int
) -> str | None:
    """Why a run that has done ``step`` ends with it, by its figures (step → figure) up to there.

    A figure that is not finite counts as not measured, as it does for ``keep_best``. Nor does one
    that is to rise count for as long as it is 0: a model that has found nothing yet, such as names
    that are rare, has not stopped getting better.
    """
    figures = {at: figure for at, figure in figures.items() if math.isfinite(figure)}
    sign = 1.0 if stop.direction == "min" else -1.0
    best, best_step, num_worse = math.inf, 0, 0
    for measured_step in sorted(figures):
        value = sign * figures[measured_step]
        if value < best - stop.min_delta:
            best, best_step, num_worse = value, measured_step, 0
        elif stop.direction == "min" or best:
            num_worse += 1
    if num_worse < stop.patience:
        return None
    moved = "fall" if stop.direction == "min" else "rise"
    by = f" by more than {stop.min_delta:g}" if stop.min_delta else ""
    since = f"since step {best_step} ({sign * best:.6g})" if best_step else "at all"
    newest = max(figures)
    until = f" up to step {newest}" if newest != step else ""
    return f"{EARLY} at step {step}: {stop.metric} did not {moved}{by} {since}{until}"


def tell_unmeasured(config: RunConfig, figures: Mapping[str, float], step: int) -> None:
    """Warn of those that are to decide something and are not finite."""
    stop, best = config.evaluation.stop, config.checkpoint.keep_best
    for section, metric in (
        ("evaluation.stop", stop.metric),
        ("checkpoint.keep_best", best.metric),
    ):
        value = figures.get(metric, 0.0)
        if not math.isfinite(value):
            logger.warning(
                "%s: %s is %s at step %d, which is no number to compare: it counts as not measured",
                *(section, metric, value, step),
            )


def read_stop_figures(config: RunConfig, ranks: Ranks, *, last_step: int) -> dict[int, float]:
    """The figures of ``evaluation.stop.metric`` up to a step, as rank 0 sees them, on all ranks:
    of the weights that are scored now, trained or averaged.

    Figures that are missing are told. Raises ``TransientError`` or ``DataError`` on all ranks where
    they cannot be read at all: without them the run would end elsewhere.
    """
    metric = config.evaluation.stop.metric
    if not metric or not last_step:
        return {}
    pairs: list[tuple[int, float]] = []
    with failing_together():
        if ranks.is_first:
            figures = read_figures(
                config.folder,
                metric,
                of_average=config.scores_average,
                at_ends=False,  # a run that was to end there and goes on ends as any other
                is_needed=True,
            )
            pairs = [(step, value) for step, value in figures.items() if step <= last_step]
            _tell_missing(config, figures, last_step)
    return {step: value for step, value in broadcast_object(pairs)}


def _tell_missing(config: RunConfig, figures: Mapping[int, float], last_step: int) -> None:
    """That of ``last_step`` itself is made up for."""
    every_steps = config.evaluation.every_steps
    missing = [step for step in range(every_steps, last_step, every_steps) if step not in figures]
    if missing:
        logger.warning(
            "evaluation.stop: metrics.jsonl has no %s of %s, the first after step %d; it decides "
            "by the others, perhaps later than it would have. That is right where "
            "evaluation.every_steps or weights was another, or the set was not there",
            config.evaluation.stop.metric,
            count_of(len(missing), "evaluation"),
            missing[0],
        )
