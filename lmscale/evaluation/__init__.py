"""A trained model → held-out figures and text."""

from lmscale.evaluation.generate import Generation, generate
from lmscale.evaluation.perplexity import (
    EvaluationPlan,
    SetScore,
    evaluate_set,
    plan_evaluation,
    render_scores,
)
from lmscale.evaluation.run import LoadedRun, load_run
from lmscale.evaluation.sampling import Sampling
from lmscale.evaluation.streaming import TextStream

__all__ = [
    "EvaluationPlan",
    "Generation",
    "LoadedRun",
    "Sampling",
    "SetScore",
    "TextStream",
    "evaluate_set",
    "generate",
    "load_run",
    "plan_evaluation",
    "render_scores",
]
