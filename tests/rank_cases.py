"""Trains many small cases in one start of ranks, each the way of `lmscale train`, in process.

A case is an attempt of a run on the tiny data: ``open_run``, ``train_steps``, the hook that saves.
``run_cases`` is for tests; the rest runs in the ranks (forked_ranks.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forked_ranks import one_group, run_starts
from tiny_run import tiny_config

if TYPE_CHECKING:
    from lmscale.engine.step_report import StepReport
    from lmscale.ranks.ranks import Ranks
    from lmscale.train.assemble import Run


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attempt of a run on the tiny data."""

    name: str
    data: str
    folder: str  # the run's; two cases with the same one are two attempts of one run
    overrides: Mapping[str, Any] = field(default_factory=dict)
    stop_after: int | None = None  # the step after which it is asked to stop


@dataclass(frozen=True, kw_only=True)
class CaseReport:
    """What rank 0 saw of one step. Floats travel through JSON exactly (repr is the shortest)."""

    step: int
    first_n: int
    targets: int
    digest: int
    more_targets: tuple[int, ...]
    loss: float
    gradient_norm: float
    learning_rate: float
    figures: Mapping[str, float]
    counts: Mapping[str, float]


def run_cases(starts: Mapping[int, Sequence[Case]], folder: Path) -> dict[str, list[CaseReport]]:
    """Number of ranks → cases, done one after the other; all their reports by the case's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, cases in enumerate(starts.values()):
        (folder / f"cases-{number}.json").write_text(json.dumps([asdict(c) for c in cases]))
    run_starts(Path(__file__), folder, tuple(starts))
    saw: dict[str, list[CaseReport]] = {}
    for number in range(len(starts)):
        reports = json.loads((folder / f"reports-{number}.json").read_text())
        saw |= {name: [_read_report(row) for row in rows] for name, rows in reports.items()}
    return saw


def _read_report(row: Mapping[str, Any]) -> CaseReport:
    return CaseReport(**{**row, "more_targets": tuple(row["more_targets"])})


def start(folder: Path, number: int) -> None:
    """What each rank of a start does."""
    rows = json.loads((folder / f"cases-{number}.json").read_text())
    saw: dict[str, Any] = {}
    with one_group() as ranks:
        for case in (Case(**row) for row in rows):
            with opened(case, ranks) as run:
                reports = train(run, stop_after=case.stop_after)
            saw[case.name] = [asdict(report) for report in reports]
    if ranks.is_first:
        (folder / f"reports-{number}.json").write_text(json.dumps(saw))


@contextmanager
def opened(case: Case, ranks: Ranks) -> Iterator[Run]:
    """The case's run, ready for its next step, on this rank."""
    import torch

    from lmscale.train.assemble import open_run

    config = tiny_config(Path(case.data), Path(case.folder), case.overrides)
    with open_run(config, ranks, torch.device("cpu")) as run:
        yield run


def train(
    run: Run, *, stop_after: int | None = None, hook: Callable[[StepReport], None] | None = None
) -> list[CaseReport]:
    """Train to the end or to a requested stop, saving as the command does."""
    from lmscale.train.loop import train_steps
    from lmscale.train.progress import ProgressCounter
    from lmscale.train.saver import Saver
    from lmscale.train.votes import DATA_ERROR

    counter = ProgressCounter(run.start)
    saver = Saver(run=run, counter=counter, ledger=None)
    steps_done = count(run.start.step)  # as it is asked before the first step, and within each
    reports = []
    with closing(saver):
        for report in train_steps(
            run.engine,
            run.loader,
            run.config,
            stop=lambda: "stop file" if next(steps_done) == stop_after else None,
            first_step=run.start.step,
            mixture=run.stream.mixture,
        ):
            counter(report)
            if hook is not None:
                hook(report)
            saver(report)
            names = CaseReport.__dataclass_fields__
            reports.append(CaseReport(**{name: getattr(report, name) for name in names}))
            if report.stop_reason not in (None, DATA_ERROR):  # that one is raised next
                break
        saver.finish()
    return reports
