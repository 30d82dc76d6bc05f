"""What the commands that score a model keep, and say, in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lmscale.cli.options import print_warnings
from lmscale.config.training import AVERAGE
from lmscale.errors import LmscaleError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.evaluation.run import LoadedRun


def keep_figures(
    run: Path,
    loaded: LoadedRun,
    figures: Mapping[str, float],
    *,
    limit: int | None,
    settings: Mapping[str, int] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Beside the run's own figures; a folder that cannot be written to is told, and no error."""
    from lmscale.runs.task_rows import record_task_figures

    try:
        record_task_figures(
            run,
            loaded.step,
            figures,
            weights=loaded.weights,
            limit=limit,
            settings=settings,
            texts=texts,
        )
    except LmscaleError as error:
        print_warnings([f"the figures are not kept: {problem}" for problem in error.problems])


def say_weights(weights: str) -> None:
    """Which ones were scored, unless they are those that were trained."""
    if weights != "trained":
        say(f"weights: {'their average over the steps' if weights == AVERAGE else weights}")
