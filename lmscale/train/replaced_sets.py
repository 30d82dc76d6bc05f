"""What becomes of a run whose held-out sets were replaced since it measured them.

Figures of other texts are no later points of the same curve. They may be shown, which is told; but
no stop and no best checkpoint is decided by a comparison of both, which is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from lmscale.checkpoint.retention import read_figures
from lmscale.config import RunConfig
from lmscale.errors import ConfigError
from lmscale.runs.held_out_sets import Replaced, find_replaced, record_sets
from lmscale.stream.dataset import Dataset
from lmscale.train.assemble import Run

logger = logging.getLogger(__name__)


def take_up_sets(run: Run, datasets: Mapping[str, Dataset]) -> None:
    """Record the sets' shards, and warn of those that were replaced. Rank 0 alone.

    Raises ``ConfigError`` where a run that trains on decides by figures of both.
    """
    step, folder = run.start.step, run.folder
    fingerprints = {name: data.manifest.fingerprint for name, data in datasets.items()}
    replaced = find_replaced(folder, fingerprints) if step else []  # else no figure stays
    trains = run.good_end is None
    problems = [p for each in replaced if trains for p in _find_decided(run.config, each, step)]
    if problems:
        raise ConfigError(problems)
    for each in replaced:
        logger.warning(
            "%s: figures after step %d are of other texts, and say nothing beside those before",
            *(each.described, step),
        )
    record_sets(folder, fingerprints, step=step)


def _find_decided(config: RunConfig, replaced: Replaced, step: int) -> Iterator[str]:
    """What would be decided by figures of both."""
    deciding = {
        "evaluation.stop.metric": config.evaluation.stop.metric,
        "checkpoint.keep_best.metric": config.checkpoint.keep_best.metric,
    }
    of_set = f"evaluation/{replaced.name}/"
    keys = [key for key, metric in deciding.items() if metric.startswith(of_set)]
    measured = {
        at for key in keys for at in read_figures(config.folder, deciding[key]) if at <= step
    }
    if measured:
        yield (
            f"{replaced.described}, and {' and '.join(keys)} would compare figures of both. Put "
            "the shards back, or name the new ones as another set (--set evaluation.sets.NAME="
            f"FOLDER), by which {' and '.join(keys)} may decide from here on."
        )
