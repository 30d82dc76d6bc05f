"""Where a run's first weights come from, and which of them it trains.

::

    InitialWeights   Fresh(seed) | OfRun(another run's checkpoint)   one value at a time
    Adaptation       Full() | Frozen(patterns)                       what the optimizer updates

Both are asked once, where a run begins. A run that goes on from a checkpoint of its own reads its
weights there, and its manifests say where the first ones came from (``Origin``, a RunState).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from lmscale.checkpoint import Place, load_manifest, open_place
from lmscale.checkpoint.load import find_weights, open_weights
from lmscale.checkpoint.manifest import Manifest
from lmscale.config import RunConfig
from lmscale.errors import CheckpointError, ConfigError
from lmscale.files.strangers import EXACT, Count, Text
from lmscale.history.history import read_history
from lmscale.model import Declared, declared_parameters, initial_value
from lmscale.ranks.collectives import broadcast_object, failing_together
from lmscale.ranks.ranks import Ranks
from lmscale.runs.run_folder import load_run_config
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)
MAX_NAMED = 8  # told one by one


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which checkpoint of which run the first weights are; a RunState, kept by every save."""

    __pydantic_config__ = EXACT
    run: Text
    checkpoint: Text  # its name, as its place has it
    step: Count
    weights: Text  # the hash of its masters, as its manifest has it

    @property
    def name(self) -> str:
        return ORIGIN

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


ORIGIN = "initial"  # its key in a manifest's ``state``
ORIGINS = TypeAdapter(Origin)


class InitialWeights(Protocol):
    """The values that a model's parameters begin with."""

    @property
    def origin(self) -> Origin | None:
        """What the checkpoints remember; None where the configuration says it all."""
        ...

    def find_problems(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """Why a model with parameters of these shapes cannot begin with them."""
        ...

    def value(self, name: str, shape: Sequence[int], declared: Declared) -> Tensor:
        """The whole parameter, fp32, on the CPU. Read or drawn now: one at a time is in memory."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Random values, a function of the seed and each parameter's name."""

    seed: int
    origin: Origin | None = None

    def find_problems(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        return []

    def value(self, name: str, shape: Sequence[int], declared: Declared) -> Tensor:
        return initial_value(name, shape, declared, self.seed)


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """The weights of another run's checkpoint, whatever stage and world size wrote it."""

    origin: Origin | None
    shapes: Mapping[str, Sequence[int]]
    read: Callable[[str], Tensor]

    def find_problems(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        problems = [f"{name} is not in it" for name in shapes if name not in self.shapes]
        problems += [f"{name} is only in it" for name in self.shapes if name not in shapes]
        return problems + [
            f"{name} is {list(self.shapes[name])} in it and {list(shape)} in this model"
            for name, shape in shapes.items()
            if name in self.shapes and tuple(self.shapes[name]) != tuple(shape)
        ]

    def value(self, name: str, shape: Sequence[int], declared: Declared) -> Tensor:
        return self.read(name).float()


@contextmanager
def open_initial_weights(
    config: RunConfig, ranks: Ranks, *, tokenizer_fingerprint: str
) -> Iterator[InitialWeights]:
    """What ``run.init_from`` names, or random values. All ranks together.

    Rank 0 verifies the other run's checkpoint. Raises ``ConfigError`` or ``CheckpointError`` on all
    ranks when there is none that can be used.
    """
    if not config.run.init_from:
        yield Fresh(seed=config.run.seed)
        return
    source, step = config.run.initial_run
    place, manifest = _find_source(source, step, ranks)
    tokenizer = manifest.identity.get("tokenizer")
    if tokenizer != tokenizer_fingerprint:
        raise ConfigError(
            f"run.init_from = {config.run.init_from}: its tokenizer is another one than that of "
            f"tokenizer.folder ({tokenizer} and {tokenizer_fingerprint}), so its embeddings are "
            "of other tokens. Name that run's tokenizer."
        )
    origin = Origin(
        run=str(manifest.identity.get("run", "")),
        checkpoint=place.name_of(manifest.step),
        step=manifest.step,
        weights=manifest.weights,
    )
    logger.info("the first weights are those of %s", origin.checkpoint)
    with open_weights(place, manifest) as read:
        yield OfRun(origin=origin, shapes=manifest.weight_shapes, read=read)


def _find_source(folder: Path, step: int | None, ranks: Ranks) -> tuple[Place, Manifest]:
    """The checkpoint of ``step``, or the newest sound one; the same on all ranks."""
    verified = -1
    with failing_together():
        try:
            source = load_run_config(folder)
        except ConfigError as error:
            raise ConfigError([f"run.init_from = {folder}: {p}" for p in error.problems]) from None
        place = open_place(source, folder)
        if ranks.is_first:
            undone = read_history(folder).undone
            verified = find_weights(place, step, origin=str(folder), undone=undone).step
        heartbeat.tick()
    verified = broadcast_object(verified)
    with failing_together():
        manifest = load_manifest(place, verified)
    return place, manifest


@torch.no_grad()
def fill_weights(
    model: nn.Module,
    initial: InitialWeights,
    *,
    gathered: Callable[[nn.Parameter], AbstractContextManager[Any]] = nullcontext,
    shape_of: Callable[[nn.Parameter], Sequence[int]] = lambda parameter: parameter.shape,
    draws: bool = True,
) -> None:
    """Give every parameter of a bare model its first value, one after the other.

    ``gathered(parameter)`` makes a partitioned parameter whole while it is written, and
    ``shape_of`` tells its whole shape. ``draws`` False only takes part in the gathering, where
    another rank's values are dealt out. Raises ``CheckpointError`` with everything by which the
    values are of another model.
    """
    parameters = dict(model.named_parameters())
    shapes = {name: shape_of(parameter) for name, parameter in parameters.items()}
    problems = initial.find_problems(shapes)
    if problems:
        where = "" if initial.origin is None else initial.origin.checkpoint
        more = len(problems) - MAX_NAMED
        raise CheckpointError(
            [
                f"run.init_from: {where} is a checkpoint of another model:",
                *(f"  {problem}" for problem in problems[:MAX_NAMED]),
                *([f"  and {more} more"] if more > 0 else []),
                "Take over the model section of that run's config.yaml.",
            ]
        )
    declared = declared_parameters(model)
    # A rank that cannot read a file may not leave the others waiting in the gathering.
    reading = nullcontext if initial.origin is None else failing_together
    for name, parameter in parameters.items():
        value: Tensor | None = None
        with reading():
            if draws:
                value = initial.value(name, shapes[name], declared[name])
        with gathered(parameter):
            if value is not None:
                parameter.copy_(value)
        heartbeat.tick()


class Adaptation(Protocol):
    """What of a model a run trains."""

    def apply(self, model: nn.Module) -> None:
        """Mark what the optimizer updates; raises ``ConfigError`` with every problem."""
        ...


@dataclass(frozen=True)
class Full:
    """Everything is trained."""

    def apply(self, model: nn.Module) -> None:
        return


@dataclass(frozen=True)
class Frozen:
    """Parameters whose names match a pattern (``blocks.0.*``) stay as they begin."""

    patterns: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        frozen_by = {
            pattern: [name for name in parameters if fnmatchcase(name, pattern)]
            for pattern in self.patterns
        }
        names = ", ".join([*parameters][:MAX_NAMED])
        problems = [
            f"train.freeze: no parameter's name matches {pattern!r}. The first ones are: {names}."
            for pattern, frozen in frozen_by.items()
            if not frozen
        ]
        frozen = {name for names in frozen_by.values() for name in names}
        if frozen == parameters.keys():
            problems.append("train.freeze matches every parameter, so nothing would be trained.")
        if problems:
            raise ConfigError(problems)
        for name in frozen:
            parameters[name].requires_grad_(False)


def plan_adaptation(config: RunConfig) -> Adaptation:
    return Frozen(config.train.freeze) if config.train.freeze else Full()
