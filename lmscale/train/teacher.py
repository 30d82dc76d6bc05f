"""The teacher of a distillation: another run's checkpoint, as a model beside that which learns.

Every rank holds it whole, as rank 0 has read it. A run's checkpoints remember which one it was, and
the run goes on with no other.
"""

from __future__ import annotations

import logging

import torch

from lmscale.config import RunConfig
from lmscale.config.model import DecoderConfig, ModelConfig
from lmscale.config.objective import DistillConfig
from lmscale.engine.engine import Engine
from lmscale.errors import ConfigError
from lmscale.files.locations import CheckpointPlace, split_checkpoint
from lmscale.model.family import build_model_on
from lmscale.objective.distill_scoring import DistillScoring
from lmscale.ranks.collectives import broadcast_tensors
from lmscale.ranks.ranks import Ranks
from lmscale.runs.origins import Origin
from lmscale.runs.run_folder import load_run_config
from lmscale.runs.students import NAME_IT, record_student
from lmscale.train.initial import fill_weights, open_weights_of
from lmscale.train.source import find_source

logger = logging.getLogger(__name__)
TEACHER = "teacher"  # its key in a manifest's ``state``


def bring_teacher(
    engine: Engine,
    config: RunConfig,
    ranks: Ranks,
    *,
    tokenizer_fingerprint: str,
    before: Origin | None,
) -> Origin | None:
    """Load the teacher of ``config.objective``, if it has one, and hand it to the scoring. All
    ranks together; which checkpoint it is.

    ``before``: which one it was, in a run that goes on. Raises ``ConfigError`` where it is not the
    same, and ``CheckpointError`` where it cannot be used.
    """
    objective, scoring = config.objective, engine.module
    if not isinstance(objective, DistillConfig):
        return None
    assert isinstance(scoring, DistillScoring)
    named = f"objective.teacher = {objective.teacher}"
    folder, step = split_checkpoint(objective.teacher)
    if before is not None:
        step = before.step if step is None else step
    source = find_source(
        named,
        CheckpointPlace(folder, step),
        ranks,
        tokenizer_fingerprint=tokenizer_fingerprint,
    )
    with open_weights_of(source, takes_average=True) as weights:
        origin = weights.origin
        assert origin is not None
        if before is not None and (before.step, before.weights) != (origin.step, origin.weights):
            raise ConfigError(
                f"{named}: {origin.checkpoint} has the weights {origin.weights or 'unknown'} after "
                f"step {origin.step}, but this run began with a teacher of {before.weights} after "
                f"step {before.step} ({before.checkpoint} of {before.run}). {NAME_IT}"
            )
        if ranks.is_first:
            record_student(folder, step=origin.step, student=config.folder)
        learned = load_run_config(folder)
        dtype = next(scoring.model.parameters()).dtype
        teacher = build_model_on(
            fit_to_machines(learned.model, config.model),
            learned.sizes,
            device=torch.device(engine.device),
            dtype=dtype,
        )
        fill_weights(teacher, weights, has_values=ranks.is_first)  # read once, for all ranks
        broadcast_tensors(teacher.parameters())
    scoring.set_teacher(teacher)
    logger.info("the teacher is %s of %s: %s", origin.checkpoint, origin.run, weights.described)
    return origin


def fit_to_machines(teacher: ModelConfig, own: ModelConfig) -> ModelConfig:
    """The teacher's settings, with what this run's own say of the machines: how they attend."""
    if not isinstance(teacher, DecoderConfig) or not isinstance(own, DecoderConfig):
        return teacher
    return teacher.model_copy(update={"attention": own.attention})
