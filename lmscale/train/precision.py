"""``engine.precision: auto`` becomes the precision of the run, once for its whole life."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from lmscale.config import RunConfig, load_config
from lmscale.errors import LmscaleError
from lmscale.files.run_files import CONFIG_FILE
from lmscale.ranks.collectives import broadcast_object, failing_together
from lmscale.ranks.precision import AUTO, agree_precision, with_precision
from lmscale.ranks.ranks import Ranks
from lmscale.runs.commits import read_commits

logger = logging.getLogger(__name__)


def settle_precision(config: RunConfig, ranks: Ranks, device: torch.device) -> RunConfig:
    """``config`` with a precision in place of auto; all ranks call this together.

    A run that has a checkpoint goes on in the precision of its config.yaml, wherever it does: a
    resume on another machine does not change the training. A new one takes what the devices of all
    its ranks compute in, and freezes it there.
    """
    if config.engine.precision != AUTO:
        return config
    begun = None
    with failing_together():
        if ranks.is_first:
            begun = _begun_in(config.folder)
    precision, reason = broadcast_object(begun), "in which the run began"
    if precision is None:
        precision, reason = agree_precision(device)
    if ranks.is_first:
        logger.info("engine.precision: auto is %s: %s", precision, reason)
    return with_precision(config, precision)


def _begun_in(folder: Path) -> str | None:
    """The precision of a run that has something to go on from."""
    if not read_commits(folder):
        return None
    try:
        precision = load_config(folder / CONFIG_FILE).engine.precision
    except LmscaleError:  # written by another version, or damaged
        return None
    return None if precision == AUTO else precision
