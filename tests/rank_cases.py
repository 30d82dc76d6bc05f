"""Trains many small cases in one start of ranks: their imports cost seconds, a case a fraction.

``run_cases`` is for tests. What it starts, one process a rank, is this file as a script. A case
goes the way of `lmscale train` in process: ``open_run``, ``train_steps``, the hooks that save.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_run import ENVIRONMENT, tiny_config

if TYPE_CHECKING:
    from lmscale.runtime.ranks import Ranks
    from lmscale.train import Run, StepReport

TESTS = Path(__file__).parent


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
    loss: float
    gradient_norm: float
    learning_rate: float


def run_cases(
    cases: Sequence[Case], *, num_ranks: int, folder: Path
) -> dict[str, list[CaseReport]]:
    """Run all cases, one after the other, in one start of ``num_ranks``; their reports by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    run_script(Path(__file__), folder, num_ranks=num_ranks)
    saw = json.loads((folder / "reports.json").read_text())
    return {name: [CaseReport(**row) for row in rows] for name, rows in saw.items()}


def run_script(script: Path, folder: Path, *, num_ranks: int) -> None:
    """Run ``script FOLDER`` as ``num_ranks`` ranks of one group; their output lands in FOLDER."""
    from launcher.local import plan_ranks, run_ranks
    from launcher.rendezvous import find_free_port

    # -c, because a script's own folder would hide installed modules of the same name.
    program = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    plans = plan_ranks(
        [sys.executable, "-c", program, str(folder)],
        num_ranks=num_ranks,
        logs=folder,
        port=find_free_port(),
        cores=1,
        environ={},
    )
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [_python_path()])])
    quiet = [
        _with_environment(plan, {**ENVIRONMENT, "PYTHONPATH": paths}, folder) for plan in plans
    ]
    outcome = run_ranks(quiet)
    said = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("rank-*.out")))
    assert outcome.exit_code == 0, f"{outcome.problems}\n{said}"


def _python_path() -> str:
    return os.environ.get("PYTHONPATH", "")


def _with_environment(plan: Any, environment: Mapping[str, str], folder: Path) -> Any:
    from dataclasses import replace

    return replace(
        plan,
        environment={**plan.environment, **environment},
        output=folder / f"rank-{plan.rank:05d}.out",  # rank 0 too: pytest shows it on failure only
    )


@contextmanager
def opened(case: Case, ranks: Ranks):
    """The case's run, ready for its next step, on this rank."""
    import torch

    from lmscale.train import open_run

    config = tiny_config(Path(case.data), Path(case.folder), case.overrides)
    with open_run(config, ranks, torch.device("cpu")) as run:
        yield run


def train_case(
    run: Run, *, stop_after: int | None = None, hook: Callable[[StepReport], None] | None = None
) -> list[CaseReport]:
    """Train to the end or to a requested stop, saving as the command does."""
    from lmscale.train import train_steps
    from lmscale.train.hooks import ProgressCounter, Saver

    counter = ProgressCounter(run.start)
    saver = Saver(run=run, counter=counter, ledger=None)
    reports = []
    for report in train_steps(
        run.engine,
        run.loader,
        run.config.engine,
        first_step=run.start.step,
        total_steps=run.config.train.steps,
        seed=run.config.run.seed,
        rank=run.ranks.rank,
        # Asked while the step is done, before the counter has heard of it.
        stop_requested=lambda: "stop file" if counter.now.step + 1 == stop_after else None,
    ):
        counter(report)
        saver(report)
        if hook is not None:
            hook(report)
        names = CaseReport.__dataclass_fields__
        reports.append(CaseReport(**{name: getattr(report, name) for name in names}))
        if report.stop_reason:
            break
    return reports


@contextmanager
def one_group():
    """This process's ranks, in a group for the time of the block."""
    import torch

    from lmscale.runtime.ranks import open_process_group, ranks_from_environment

    torch.set_num_threads(1)
    ranks = ranks_from_environment()
    with open_process_group(ranks, torch.device("cpu")):
        yield ranks


def main(folder: Path) -> None:
    cases = [Case(**row) for row in json.loads((folder / "cases.json").read_text())]
    saw: dict[str, Any] = {}
    with one_group() as ranks:
        for case in cases:
            with opened(case, ranks) as run:
                reports = train_case(run, stop_after=case.stop_after)
            saw[case.name] = [asdict(report) for report in reports]
    if ranks.is_first:
        (folder / "reports.json").write_text(json.dumps(saw))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
