"""The configured model and objective, with first weights, under DeepSpeed."""

from __future__ import annotations

import torch
import torch.distributed as dist

from lmscale.config import BatchPlan, RunConfig
from lmscale.engine import Engine, build_engine, gathered, parameter_context
from lmscale.engine.engine import whole_shape
from lmscale.model import build_model, parameter_kinds
from lmscale.objective.objective import build_scoring
from lmscale.ranks.mesh import Mesh
from lmscale.train.initial import Fresh, InitialWeights, fill_weights, plan_adaptation


def build_run_engine(
    config: RunConfig,
    plan: BatchPlan,
    mesh: Mesh,
    device: torch.device,
    *,
    fill: bool,
    initial: InitialWeights | None = None,
) -> Engine:
    """The configured model with its objective under DeepSpeed.

    ``fill`` gives it its first weights: ``initial``, by default random ones. Without, its memory is
    as it was, for a checkpoint.
    """
    with parameter_context(config.engine, plan, device):
        model = build_model(config.model, config.sizes)
    if fill:
        initial = initial or Fresh(seed=config.run.seed)
        # At ZeRO 3 rank 0's values are dealt out; elsewhere every rank draws, or reads, the same.
        draws = config.engine.zero_stage != 3 or dist.get_rank() == 0
        fill_weights(model, initial, gathered=gathered, shape_of=whole_shape, draws=draws)
    plan_adaptation(config).apply(model)
    if config.engine.compile:
        for block in model.blocks_to_compile():
            block.compile()
    kinds = parameter_kinds(model)
    scoring = build_scoring(model, config)
    return build_engine(
        scoring, kinds, config.engine, plan=plan, mesh=mesh, device=device, name_prefix="model."
    )
