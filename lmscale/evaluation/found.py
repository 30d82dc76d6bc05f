"""A run folder → the checkpoint to evaluate, generate from or export. Loads no torch: what is wrong
with the folder is told before that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.find_weights import find_weights, no_checkpoint
from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.places.run_place import open_place
from lmscale.checkpoint.retention import find_kept_best
from lmscale.config import RunConfig
from lmscale.config.training import AVERAGE, Weights
from lmscale.errors import CheckpointError, ConfigError
from lmscale.files.printing import say
from lmscale.history.history import read_history
from lmscale.ranks.collectives import broadcast_object
from lmscale.ranks.ranks import Ranks
from lmscale.runs.continuation import identity_of
from lmscale.runs.run_folder import load_run_config
from lmscale.stream.ledger import load_bos
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.codec import load_kept_tokenizer


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """A run's checkpoint that was verified, before any weight is read."""

    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    place: Place
    manifest: Manifest
    weights: Weights  # which ones to read: ``open_weights(place, manifest, weights)``
    bos_id: int | None  # that the run has learned to begin documents with

    @property
    def name(self) -> str:
        """What people call the checkpoint."""
        return self.place.name_of(self.manifest.step)


def check_step(folder: Path, step: int | None) -> None:
    """Raise the error of a run that has saved nothing, or not this step. Reads no weights."""
    place = open_place(load_run_config(folder), folder)
    if step is not None:
        load_manifest(place, step)
    elif not place.list_steps():
        raise no_checkpoint(str(folder))


def find_run(
    folder: Path, *, step: int | None, weights: Weights | None = None, ranks: Ranks | None = None
) -> FoundRun:
    """The checkpoint of ``step`` in a run's folder; None: the best one, where the run keeps one by
    ``checkpoint.keep_best``, which is told, and else the newest sound one. All ``ranks`` together,
    which share its verification; None: this process alone.

    ``weights`` None: by ``evaluation.weights``, and by default their average where there is one.
    Raises ``ConfigError`` if this is no run, and ``CheckpointError`` if it holds no sound
    checkpoint.
    """
    if weights not in (None, *get_args(Weights)):
        raise ConfigError(f"weights = {weights!r}: give one of {', '.join(get_args(Weights))}.")
    config = load_run_config(folder)
    tokenizer = load_kept_tokenizer(folder, config.tokenizer.folder)
    place = open_place(config, folder)
    ranks = ranks or Ranks()
    find = partial(
        find_weights,
        place,
        ranks=ranks,
        origin=str(folder),
        undone=read_history(folder).undone,
        identity=identity_of(config, tokenizer.fingerprint),
    )
    manifest = find(step) if step is not None else _find_best(config, folder, find, ranks) or find()
    weights = (
        weights or config.evaluation.weights or (AVERAGE if manifest.has_average else "trained")
    )
    if weights == AVERAGE and not manifest.has_average:
        raise CheckpointError(
            f"{place.name_of(manifest.step)} holds no average of the weights: the run kept none "
            "(engine.ema_decay). Take the trained ones: --weights trained"
        )
    return FoundRun(
        folder=folder,
        config=config,
        tokenizer=tokenizer,
        place=place,
        manifest=manifest,
        weights=weights,
        bos_id=load_bos(folder),
    )


def _find_best(
    config: RunConfig, folder: Path, find: Callable[[int], Manifest], ranks: Ranks
) -> Manifest | None:
    """The best checkpoint that the run keeps; None where it keeps none that is whole."""
    best = find_kept_best(config.checkpoint, folder) if ranks.is_first else None
    if ranks.world_size > 1:  # a run that trains writes figures between two looks
        best = broadcast_object(best)
    if best is None:
        return None
    metric = config.checkpoint.keep_best.metric
    try:
        manifest = find(best)
    except CheckpointError as error:
        if ranks.is_first:
            say(f"{folder}@{best}, the best by {metric}, is passed over: {error}", err=True)
        return None
    if ranks.is_first:
        say(f"{folder}@{best}, the best checkpoint by {metric} (--step takes another)", err=True)
    return manifest
