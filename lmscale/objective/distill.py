"""Distillation, the half without torch: windows as they are read, as causal modelling has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmscale.config import RunConfig
from lmscale.config.objective import DistillConfig
from lmscale.objective.causal import CAUSAL
from lmscale.objective.objective import Objective

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.distill_scoring import DistillScoring

    settings = config.objective
    assert isinstance(settings, DistillConfig)
    return DistillScoring(model, settings, mask_documents=config.stream.mask_documents)


DISTILL = Objective(prepare=CAUSAL.prepare, build=_build)
