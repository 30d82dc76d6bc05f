"""A trained model → held-out figures and text.

::

    RUN ──load_run──→ LoadedRun ──┬─→ evaluate_set (perplexity.py): loss, perplexity, bits per byte
                                  │      over the sets that open_evaluation_sets opens and checks
                                  └─→ Generation (generate.py): a prompt → ids by Sampling
                                         ──TextStream──→ text

The first calls to read are ``load_run`` and ``evaluate_set``. The evaluation between the steps of a
run, by the same functions, is ``lmscale/train/scoring.py``.
"""

from lmscale.evaluation.generate import Generation, Sampling, TextStream
from lmscale.evaluation.perplexity import (
    EvaluationPlan,
    SetScore,
    evaluate_set,
    plan_evaluation,
    render_scores,
)
from lmscale.evaluation.run import LoadedRun, load_run

__all__ = [
    "EvaluationPlan",
    "Generation",
    "LoadedRun",
    "Sampling",
    "SetScore",
    "TextStream",
    "evaluate_set",
    "load_run",
    "plan_evaluation",
    "render_scores",
]
