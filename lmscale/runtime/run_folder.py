"""What a run's folder tells about the run, running or not, without loading torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig, load_config
from lmscale.config.ownership import CONFIG_FILE
from lmscale.errors import ConfigError
from lmscale.runtime.goodput import ATTEMPTS_FILE, Goodput, goodput
from lmscale.runtime.jsonl import Row, last_row, read_rows, tail_rows
from lmscale.runtime.trackers import METRICS_FILE

LEDGER_FILE = "ledger.jsonl"
RUNNING = "running"
ALIVE_SECONDS = 120.0  # a step longer than this shows as silence


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run at one look."""

    folder: Path
    config: RunConfig
    state: str
    """``running``, ``silent for … s`` (killed, or in a very long step), ``not started``, or why the
    last attempt ended."""
    step: int
    """Steps done, by the ledger."""
    figures: Row
    """The latest value of every metric, by name."""
    goodput: Goodput
    attempts: tuple[Row, ...]
    """The start rows."""
    checkpoints: tuple[str, ...]
    """Names of the committed ones, oldest first."""


def read_status(folder: str | Path) -> RunStatus:
    """Read a run's folder. Raises ``ConfigError`` when it is none."""
    folder = Path(folder)
    config = load_run_config(folder)
    attempts = read_rows(folder / ATTEMPTS_FILE)
    ledger = last_row(folder / LEDGER_FILE)
    checkpoints = sorted(path.parent.name for path in folder.glob("checkpoints/*/manifest.json"))
    state = _describe_state(folder, attempts)
    return RunStatus(
        folder=folder,
        config=config,
        state=state,
        step=ledger["step"] + 1 if ledger else 0,
        figures=_latest_figures(folder / METRICS_FILE),
        # Of a run that is gone without a word, the time since then is not known to be lost.
        goodput=goodput(attempts, time.time() if state == RUNNING else None),
        attempts=tuple(row for row in attempts if row["event"] == "start"),
        checkpoints=tuple(checkpoints),
    )


def load_run_config(folder: str | Path) -> RunConfig:
    """The configuration that ran. Raises ``ConfigError`` when ``folder`` is not a run's."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not a run's folder: it holds no {CONFIG_FILE}. "
            "`lmscale runs list` shows the runs of a folder."
        )
    return load_config(path)


def find_runs(folder: str | Path) -> list[Path]:
    """The run folders directly in ``folder``, by name. Raises ``ConfigError`` when it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. Name the one that holds the runs.")
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))


def _describe_state(folder: Path, attempts: list[Row]) -> str:
    if not attempts:
        return "not started"
    if attempts[-1]["event"] == "end":
        return str(attempts[-1]["reason"])
    names = (LEDGER_FILE, METRICS_FILE, ATTEMPTS_FILE)
    signs = [path.stat().st_mtime for path in map(folder.joinpath, names) if path.exists()]
    silence = time.time() - max(signs)
    return RUNNING if silence < ALIVE_SECONDS else f"silent for {silence:,.0f} s"


def _latest_figures(path: Path) -> Row:
    """Rows of steps and of evaluations hold different names: the last of each counts."""
    figures: dict[str, Any] = {}
    for row in tail_rows(path):
        figures.update(row)
    return figures
