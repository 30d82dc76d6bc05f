"""The guard: a run whose figures are no longer numbers stops, with evidence, before it spends
more.
"""

from __future__ import annotations

import math
from collections import deque

from lmscale.errors import GuardError
from lmscale.train.loop import StepReport


class Guard:
    """Raises ``GuardError`` after ``max_nonfinite_steps`` bad steps in a row."""

    def __init__(self, *, max_nonfinite_steps: int, minimum_loss_scale: float) -> None:
        self._minimum_loss_scale = minimum_loss_scale
        self._recent: deque[StepReport] = deque(maxlen=max_nonfinite_steps)

    def __call__(self, report: StepReport) -> None:
        if not self._is_bad(report):
            self._recent.clear()
            return
        self._recent.append(report)
        if len(self._recent) == self._recent.maxlen:
            evidence = "\n".join(
                f"  step {row.step}: loss {row.loss}, gradient norm {row.gradient_norm}, "
                f"learning rate {row.learning_rate:.3g}, samples from {row.first_n}"
                for row in self._recent
            )
            raise GuardError(
                f"{len(self._recent)} steps in a row were not finite, so the run "
                f"stopped:\n{evidence}\n"
                "The same command goes on from the newest checkpoint with finite weights. First "
                "lower engine.optimizer.lr, lengthen the warm-up, or look at these samples."
            )

    def _is_bad(self, report: StepReport) -> bool:
        if not math.isfinite(report.loss):
            return True
        # A skipped step is how fp16 finds its loss scale; only at the smallest scale it means
        # trouble.
        is_searching = report.is_skipped and report.loss_scale > self._minimum_loss_scale
        return not math.isfinite(report.gradient_norm) and not is_searching
