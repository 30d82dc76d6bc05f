"""What is predicted and how it is scored: a micro-batch and a model → sums and counts."""

from lmscale.objective.causal import CausalObjective, ObjectiveOutput, build_targets
from lmscale.objective.cross_entropy import IGNORED, CrossEntropySums, chunked_cross_entropy
from lmscale.objective.loss_sum import LossSum

__all__ = [
    "IGNORED",
    "CausalObjective",
    "CrossEntropySums",
    "LossSum",
    "ObjectiveOutput",
    "build_targets",
    "chunked_cross_entropy",
]
