"""How far a run is: the values that a checkpoint carries beside the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lmscale.engine.step_report import StepReport


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Steps done and what they used, over all restarts."""

    step: int = 0  # optimizer steps done
    n: int = 0  # samples used, which is the number of the next one
    tokens: int = 0  # target positions trained on
    skipped_steps: int = 0  # steps whose gradient overflowed

    def after(self, report: StepReport) -> Progress:
        return replace(
            self,
            step=report.step,
            n=report.first_n + report.samples,
            tokens=self.tokens + report.targets,
            skipped_steps=self.skipped_steps + report.is_skipped,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
