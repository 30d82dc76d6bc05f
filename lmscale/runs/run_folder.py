"""What a run's folder tells about the run, running or not, without loading torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig, load_config
from lmscale.errors import ConfigError
from lmscale.files import run_files
from lmscale.files.jsonl import Row, last_row, read_rows, tail_rows
from lmscale.files.run_files import (
    ALIVE_SECONDS,
    CONFIG_FILE,
    DATA_SLURM_FOLDER,
    FAULTS_FILE,
    RESUMES_FILE,
    REWINDS_FILE,
    SLURM_FOLDER,
    SWEEP_FILE,
    WATCH_FILE,
)
from lmscale.runs.attempts import ATTEMPTS_FILE, FINISHED
from lmscale.runs.commits import Commit, read_commits
from lmscale.runs.goodput import Goodput, goodput
from lmscale.runs.starts import HANG_ENDED, RunSigns, plan_starts, read_events
from lmscale.runs.sweep_folder import find_membership, frozen_config, member_submissions, read_sweep
from lmscale.runs.trackers import METRICS_FILE

LEDGER_FILE = "ledger.jsonl"
_METRICS_BYTES = 1 << 18  # some 200 lines: evaluations are rarer than steps
# With what an attempt ends that could not be saved.
_FAILED_SAVES = ("save failed", "CheckpointError", "NoSpaceError")


@dataclass(frozen=True, kw_only=True)
class RunStatus(RunSigns):
    """A run at one look."""

    folder: Path
    config: RunConfig
    step: int  # steps done, by the ledger
    figures: Row  # the latest value of every metric, by name
    figure_steps: Mapping[str, int]  # the step of each figure
    metrics: tuple[Row, ...]  # the last lines of metrics.jsonl
    goodput: Goodput
    attempts: tuple[Row, ...]  # all rows of attempts.jsonl
    commits: tuple[Commit, ...]  # wherever they are, in the order of their commits
    rewinds: tuple[Row, ...]  # what the guard undid, oldest first
    passed_over: tuple[Row, ...]  # checkpoints not taken, oldest start first: time, checkpoint, why
    evidence: tuple[Path, ...]  # files with what the guard knew when it acted, oldest step first
    faults: tuple[Row, ...]  # what was made to fail on purpose, oldest first

    @property
    def attempt_starts(self) -> tuple[Row, ...]:
        return tuple(row for row in self.attempts if row["event"] == "start")

    @property
    def failed_saves(self) -> tuple[Row, ...]:
        """The ends of the attempts that ended because they could not be saved."""
        return tuple(row for row in self.attempts if row.get("reason") in _FAILED_SAVES)

    @property
    def heldout(self) -> tuple[str, float] | None:
        """The newest held-out loss and its name; of several sets the first by name."""
        for kind in ("final", "evaluation"):
            names = [n for n in self.figures if n.startswith(f"{kind}/") and n.endswith("/loss")]
            values = [(n, self.figures[n]) for n in sorted(names) if self.figures[n] is not None]
            if values:
                return values[0]
        return None


def read_status(folder: str | Path) -> RunStatus:
    """Read a run's folder. Raises ``ConfigError`` for any other folder."""
    folder = Path(folder)
    config = load_run_config(folder)
    attempts = read_rows(folder / ATTEMPTS_FILE)
    ledger = last_row(folder / LEDGER_FILE)
    step = ledger["step"] + 1 if ledger else 0
    last_sign = _last_sign(folder)
    watch = tail_rows(folder / WATCH_FILE)
    starts = plan_starts(read_events(folder), attempts, watch)
    metrics = tail_rows(folder / METRICS_FILE, max_bytes=_METRICS_BYTES)
    figures, figure_steps = _latest_figures(metrics)
    submissions = read_submissions(folder)
    is_open = bool(attempts) and attempts[-1]["event"] != "end"
    is_alive = is_open and time.time() - (last_sign or 0.0) < ALIVE_SECONDS
    return RunStatus(
        folder=folder,
        config=config,
        step=step,
        figures=figures,
        figure_steps=figure_steps,
        metrics=tuple(metrics),
        # Of a run that is gone without a word, the time since then is not known to be lost.
        goodput=goodput(attempts, time.time() if is_alive else None),
        attempts=tuple(attempts),
        starts=starts,
        commits=read_commits(folder),
        rewinds=tuple(read_rows(folder / REWINDS_FILE)),
        passed_over=tuple(
            {"time": row["time"], **checkpoint}
            for row in read_rows(folder / RESUMES_FILE)
            for checkpoint in row["passed_over"]
        ),
        evidence=tuple(sorted(folder.glob("guard/*/evidence.json"))),
        faults=tuple(read_rows(folder / FAULTS_FILE)),
        submissions=submissions,
        cancels=run_files.read_cancelled(folder / SLURM_FOLDER),
        is_finished=step >= config.train.steps and _ended_well(attempts, submissions),
        last_sign=last_sign,
        hang=_find_hang(watch, since=starts[-1].began_at if starts else 0.0),
    )


def _ended_well(attempts: Sequence[Row], submissions: Sequence[Row]) -> bool:
    """Whether the last attempt came to its end, and no other one was submitted since."""
    submitted_at = max((row["time"] for row in submissions if row["kind"] == "train"), default=0.0)
    last = attempts[-1] if attempts else {}
    return last.get("reason") == FINISHED and submitted_at <= last["time"]


def _find_hang(watch: Sequence[Row], *, since: float) -> str | None:
    """What the watchdog said of a hang, if the ranks have not moved nor ended since."""
    rows = [row for row in watch if row["event"] in ("hang", HANG_ENDED, "moving")]
    hangs = rows and rows[-1]["event"] == "hang" and rows[-1]["time"] >= since
    return str(rows[-1]["text"]) if hangs else None


def read_submissions(folder: str | Path) -> list[Row]:
    """What was submitted to Slurm for this folder, oldest first; of a sweep's run its own task."""
    folder = Path(folder)
    rows = run_files.read_submissions(folder / SLURM_FOLDER)
    rows = rows or run_files.read_submissions(folder / DATA_SLURM_FOLDER)
    membership = find_membership(folder)
    submissions = {row["submission"] for row in rows}
    of_sweep = member_submissions(*membership) if membership else []
    rows += [row for row in of_sweep if row["submission"] not in submissions]
    return sorted(rows, key=lambda row: row["time"])


def load_run_config(folder: str | Path) -> RunConfig:
    """The configuration that ran, or will run first. Raises ``ConfigError`` where there is none."""
    begun = Path(folder) / CONFIG_FILE
    path = begun if begun.is_file() else frozen_config(Path(folder))
    if path is None:
        raise ConfigError(
            f"{folder} is not a run's folder: it holds no {CONFIG_FILE}. "
            "`lmscale runs list` shows the runs of a folder."
        )
    return load_config(path)


def find_runs(folder: str | Path) -> list[Path]:
    """The run folders in ``folder``, by name, also those in a queue. Raises ``ConfigError``."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. Name the one that holds the runs.")
    started = {path.parent for path in folder.glob(f"*/{CONFIG_FILE}")}
    submitted = {path.parents[2] for path in folder.glob(f"*/{SLURM_FOLDER}/*/{CONFIG_FILE}")}
    sweeps = {path.parent for path in folder.glob(f"*/{SWEEP_FILE}")}
    members = read_sweep(folder).runs if (folder / SWEEP_FILE).is_file() else ()
    return sorted((started | submitted) - sweeps | {member.folder for member in members})


def _last_sign(folder: Path) -> float | None:
    # Rank 0's heartbeat speaks for the run: its own thread writes it, also in a very long step.
    names = (LEDGER_FILE, METRICS_FILE, ATTEMPTS_FILE, "heartbeats/rank-00000.json")
    signs = [path.stat().st_mtime for path in map(folder.joinpath, names) if path.exists()]
    return max(signs, default=None)


def _latest_figures(rows: Sequence[Row]) -> tuple[Row, dict[str, int]]:
    """Rows of steps and of evaluations hold different names: the last of each counts."""
    figures: dict[str, Any] = {}
    steps: dict[str, int] = {}
    for row in rows:
        figures.update(row)
        if "step" in row:
            steps.update({name: int(row["step"]) for name in row})
    return figures, steps
