"""The weights of classes in the loss: those that the configuration names, or that balance them.

What ``balanced`` comes to is counted once, when a run begins, and kept by its checkpoints: it goes
on with the same weights, whatever becomes of the shards or of the mixture.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter

from lmscale.config import RunConfig
from lmscale.config.supervised import BALANCED, NamedClassesConfig
from lmscale.engine.engine import Engine
from lmscale.errors import DataError
from lmscale.files.progress import progress
from lmscale.files.strangers import EXACT, Finite, Text
from lmscale.objective.labelled_scoring import LabelledScoring
from lmscale.ranks.collectives import broadcast_object, failing_together
from lmscale.ranks.ranks import Ranks
from lmscale.stream.class_balance import balance, expect_classes
from lmscale.stream.stream import Stream
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)
CLASS_WEIGHTS = "class_weights"  # its key in a manifest's ``state``


@dataclass(frozen=True, kw_only=True)
class ClassWeights:
    """What balances the classes of a run."""

    __pydantic_config__ = EXACT
    weights: dict[Text, Annotated[Finite, Field(gt=0)]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


STORED = TypeAdapter(ClassWeights)


def bring_class_weights(
    engine: Engine,
    config: RunConfig,
    ranks: Ranks,
    stream: Stream,
    *,
    first_n: int,
    before: ClassWeights | None,
) -> ClassWeights | None:
    """Hand the weights of ``objective.class_weights``, if there are any, to the scoring. All ranks
    together; what is to be kept of them.

    ``before``: what a run that goes on has kept. Raises ``DataError`` for a class without examples,
    which nothing balances.
    """
    objective, scoring = config.objective, engine.module
    if not isinstance(objective, NamedClassesConfig) or not objective.class_weights:
        return None
    assert isinstance(scoring, LabelledScoring)
    kept = None
    if objective.class_weights == BALANCED:
        kept = before
        if before is None or set(before.weights) != set(objective.names):
            weights = {}
            with failing_together():
                if ranks.is_first:
                    weights = _balance(stream, objective.names, at=first_n)
                heartbeat.tick()
            kept = ClassWeights(weights=broadcast_object(weights))
        assert kept is not None
        weights = kept.weights
        told = ", ".join(f"{name} {weights[name]:.4g}" for name in objective.names[:20])
        logger.info("weights that balance the classes: %s", told)
    else:
        weights = objective.class_weights
    values = [weights.get(name, 1.0) for name in objective.names]
    scoring.class_weights = torch.tensor(values, dtype=torch.float32, device=engine.device)
    return kept


def _balance(stream: Stream, names: tuple[str, ...], *, at: int) -> dict[str, float]:
    shards = sum(len(dataset.manifest.shards) for dataset in stream.datasets.values())
    with progress("counting labels", shards, "shards") as advance:

        def tick(done: float) -> None:
            advance(done)
            heartbeat.tick()

        expected = expect_classes(stream, at=at, advance=tick)
    if missing := [names[number] for number in np.flatnonzero(expected == 0)]:
        shown = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
        raise DataError(
            "objective.class_weights = 'balanced', but of these classes of objective.names the "
            f"training shards hold no example: {shown}. Name weights, such as {{{names[0]}: 2}}, "
            "or leave class_weights out."
        )
    return dict(zip(names, balance(expected).tolist(), strict=True))
