"""What tasks gave: figures by task, as a table, as JSON, and as a run shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmscale.files.printing import align_rows

PREFIX = "tasks"  # of the names of figures: tasks/NAME/acc
# Of a question each is 0 or 1, so that the error of their mean follows from it.
_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match")


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One task's figures."""

    documents: int
    figures: Mapping[str, float]
    """Such as ``acc``; behind a filter of the task's own ``exact_match.FILTER``."""

    def error_of(self, figure: str) -> float | None:
        """The standard error of a share of questions; None of other figures, and of what a
        task's own function calls by such a name and is none.
        """
        value, count = self.figures[figure], self.documents
        if figure.partition(".")[0] not in _SHARES or count < 2 or not 0 <= value <= 1:
            return None
        return math.sqrt(value * (1 - value) / (count - 1))

    def to_json(self) -> dict[str, Any]:
        figures = {name: v if math.isfinite(v) else None for name, v in self.figures.items()}
        errors = {f"{name}_stderr": self.error_of(name) for name in self.figures}
        known = {name: value for name, value in errors.items() if value is not None}
        return {"documents": self.documents, **figures, **known}


def read_results(results: Mapping[str, Any]) -> dict[str, TaskScore]:
    """lm-eval's own results → scores by task, then by group."""
    scores = {}
    for name, row in results["results"].items():
        figures = {}
        for key, value in row.items():
            figure, _, filtered = key.partition(",")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if filtered and is_number and not figure.endswith("_stderr"):
                figures[figure if filtered == "none" else f"{figure}.{filtered}"] = float(value)
        if figures:
            scores[name] = TaskScore(documents=int(row.get("sample_len") or 0), figures=figures)
    return scores


def name_figures(scores: Mapping[str, TaskScore]) -> dict[str, float]:
    """All figures by the names that trackers know: ``tasks/NAME/acc``."""
    return {
        f"{PREFIX}/{name}/{figure}": value
        for name, score in scores.items()
        for figure, value in score.figures.items()
    }


def render_task_scores(scores: Mapping[str, TaskScore]) -> str:
    """A table, one figure of a task a line."""
    rows = [("task", "documents", "figure", "value", "± error")]
    for name, score in scores.items():
        for figure, value in score.figures.items():
            error = score.error_of(figure)
            cells = (name, f"{score.documents:,}", figure)
            rows.append((*cells, f"{value:.4f}", "" if error is None else f"{error:.4f}"))
    return align_rows(rows, left=(0, 2))
