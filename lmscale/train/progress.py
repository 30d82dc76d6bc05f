"""How far a run is: what counts it step by step, and what a checkpoint carries of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from lmscale.checkpoint.manifest import Manifest, read_state
from lmscale.engine.step_report import StepReport
from lmscale.errors import CheckpointError
from lmscale.files.strangers import EXACT, Count


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Steps done and what they used, over all restarts."""

    __pydantic_config__ = EXACT
    step: Count = 0  # optimizer steps done
    n: Count = 0  # samples used, which is the number of the next one
    tokens: Count = 0  # trained on: the targets, which the loss counts
    skipped_steps: Count = 0  # steps whose gradient overflowed

    def after(self, report: StepReport) -> Progress:
        return replace(
            self,
            step=report.step,
            n=report.first_n + report.samples,
            tokens=self.tokens + report.targets,
            skipped_steps=self.skipped_steps + report.is_skipped,
        )


Hook = Callable[[StepReport], None]  # called after a step, with its report
PROGRESS, STREAM = "progress", "stream"  # keys of a manifest's ``state``
_PROGRESS = TypeAdapter(Progress)


def read_progress(manifest: Manifest, *, where: str) -> Progress:
    """How far a checkpoint's run was. Raises ``CheckpointError`` where it does not say so."""
    progress = read_state(manifest, PROGRESS, _PROGRESS, where=where)
    if progress is None:
        raise CheckpointError(
            f"{where} does not say how many samples were used: no run of this lmscale wrote it."
        )
    return progress


class ProgressCounter:
    """Adds the reports up; the one place that knows how far the run is. A hook."""

    def __init__(self, start: Progress) -> None:
        self.now = start

    def __call__(self, report: StepReport) -> None:
        self.now = self.now.after(report)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint carries."""
        return asdict(self.now)


def describe_steps(done: int, last: int) -> str:
    """Which steps are left, with ``done`` of them done."""
    return f"steps {done + 1} to {last}" if done < last else f"no step left after {done}"
