"""The checkpoint of another run: which one it is, whole, and of the run's own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lmscale.checkpoint.find import nothing_undone
from lmscale.checkpoint.find_weights import find_weights
from lmscale.checkpoint.load import load_checkpoint
from lmscale.checkpoint.manifest import Manifest, read_state
from lmscale.checkpoint.places.place import LocalPlace, Place
from lmscale.checkpoint.places.run_place import open_place
from lmscale.config.lora import LoraConfig
from lmscale.engine.engine import Engine
from lmscale.errors import CheckpointError, ConfigError
from lmscale.files.locations import CheckpointPlace
from lmscale.history.history import read_history
from lmscale.ranks.collectives import failing_together
from lmscale.ranks.ranks import Ranks
from lmscale.runs.given_weights import IMPORTED, IMPORTS
from lmscale.runs.origins import Origin
from lmscale.runs.run_folder import load_run_config
from lmscale.watch import heartbeat


@dataclass(frozen=True, kw_only=True)
class Source:
    """A verified checkpoint of another run."""

    named: str  # who asks, for messages
    place: Place
    manifest: Manifest
    origin: Origin
    lora: LoraConfig  # the adapters that it holds


def find_source(
    named: str, where: CheckpointPlace, ranks: Ranks, *, tokenizer_fingerprint: str
) -> Source:
    """By default a run's newest sound checkpoint. All ranks together, which verify it.

    Raises ``ConfigError`` or ``CheckpointError`` on all ranks when there is none that can be used.
    """
    lora = LoraConfig()
    with failing_together():
        if where.is_alone:
            place, undone = LocalPlace(where.folder.absolute()), nothing_undone
        else:
            try:
                source = load_run_config(where.folder)
            except ConfigError as error:
                raise ConfigError([f"{named}: {p}" for p in error.problems]) from None
            place, lora = open_place(source, where.folder.absolute()), source.model.lora
            undone = read_history(where.folder).undone if ranks.is_first else nothing_undone
        heartbeat.tick()
    manifest = find_weights(place, where.step, ranks=ranks, origin=str(where.folder), undone=undone)
    if where.is_alone:
        lora = _read_lora(manifest, named)
    _check_tokenizer(manifest, tokenizer_fingerprint, named)
    name = place.name_of(manifest.step)
    origin = Origin(
        run=str(manifest.identity.get("run", "")),
        checkpoint=name,
        step=manifest.step,
        weights=manifest.weights,
        imported=read_state(manifest, IMPORTED, IMPORTS, where=name),
    )
    return Source(named=named, place=place, manifest=manifest, origin=origin, lora=lora)


def load_with_optimizer(source: Source, engine: Engine) -> None:
    """Put the weights and the optimizer's states into an engine, whatever stage and number of ranks
    wrote them: moments, updates taken, the average, the loss scale. All ranks together.
    """
    try:
        load_checkpoint(source.place, source.manifest, engine)
    except CheckpointError as error:
        advice = "Set them as that run has them, or leave run.init_optimizer out: weights alone"
        problems = [f"{source.named}: {problem}" for problem in error.problems]
        raise CheckpointError([*problems, f"{advice} fit where the model is the same."]) from None


def _read_lora(manifest: Manifest, named: str) -> LoraConfig:
    model: Any = manifest.identity.get("model")
    try:
        return LoraConfig.model_validate(model.get("lora", {}) if isinstance(model, dict) else {})
    except ValidationError:
        raise CheckpointError(f"{named}: its manifest has a model.lora that is none.") from None


def _check_tokenizer(manifest: Manifest, fingerprint: str, named: str) -> None:
    tokenizer = manifest.identity.get("tokenizer")
    if tokenizer != fingerprint:
        raise ConfigError(
            f"{named}: its tokenizer is another one than that of tokenizer.folder ({tokenizer} and "
            f"{fingerprint}), so its embeddings are of other tokens. Name that run's tokenizer."
        )
