"""What an objective is to the rest of lmscale, and how a run's is found. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmscale.config import RunConfig
from lmscale.config.kinds import import_implementation
from lmscale.stream.batches import Preparation

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


IGNORED = -100  # label of a position that is not a target
SOURCE_LOSS = "source_loss"  # the loss of a source's rows is this figure's part by its name


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The two halves of an objective. Its section in the configuration names where this lies."""

    prepare: Callable[[RunConfig], Preparation]
    """Called in a rank; the value travels to the loader's workers, which load no torch for it."""
    build: Callable[[Model, RunConfig], nn.Module]
    """The module that scores: it holds the model as ``model``, and is called with the arrays by
    name. Torch is imported inside.
    """


def build_preparation(config: RunConfig) -> Preparation:
    """What makes its objective's arrays of a run's rows. ``ConfigError`` if it is not there."""
    return import_implementation(config.objective, Objective).prepare(config)


def build_scoring(model: Model, config: RunConfig) -> nn.Module:
    """The model with its loss, so that a training engine wraps and calls one module."""
    return import_implementation(config.objective, Objective).build(model, config)
