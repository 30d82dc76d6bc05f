"""What happens after a step: hooks are called with its report, in the order in which they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmscale.engine.step_report import StepReport
from lmscale.stream.ledger import Ledger, LedgerRow
from lmscale.train.progress import PROGRESS, Progress

Hook = Callable[[StepReport], None]


class ProgressCounter:
    """Adds the reports up; the one place that knows how far the run is. A RunState."""

    name = PROGRESS

    def __init__(self, start: Progress) -> None:
        self.now = start

    def __call__(self, report: StepReport) -> None:
        self.now = self.now.after(report)

    def to_json(self) -> dict[str, Any]:
        return self.now.to_json()


def ledger_hook(ledger: Ledger) -> Hook:
    """Append every step to the ledger. Rank 0 only."""

    def hook(report: StepReport) -> None:
        ledger.append(
            LedgerRow(
                step=report.step - 1,  # the ledger counts from 0: step s takes samples from s·G
                first_n=report.first_n,
                samples=report.samples,
                tokens=report.targets,
                digest=report.digest,
            )
        )

    return hook
