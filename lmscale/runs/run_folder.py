"""What a run's folder tells about the run, running or not, without loading torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lmscale.config import RunConfig, load_config
from lmscale.errors import ConfigError
from lmscale.files import run_files
from lmscale.files.jsonl import TAIL_BYTES, Row, sift_rows
from lmscale.files.run_files import (
    ALIVE_SECONDS,
    ATTEMPTS_FILE,
    CONFIG_FILE,
    DATA_SLURM_FOLDER,
    FAULTS_FILE,
    LEDGER_FILE,
    METRICS_FILE,
    RESUMES_FILE,
    REWINDS_FILE,
    SLURM_FOLDER,
    SWEEP_FILE,
    TASKS_FILE,
    WATCH_FILE,
)
from lmscale.files.run_rows import FAULT, FIGURES, RESUME, REWIND, STEP, TASK_FIGURES, WATCH
from lmscale.runs.attempts import find_good_end, read_attempts
from lmscale.runs.commits import Commit, read_commits
from lmscale.runs.environment import find_missing_packages
from lmscale.runs.given_weights import describe_import, describe_made
from lmscale.runs.goodput import FINISHED, Goodput, goodput
from lmscale.runs.lease import read_lease
from lmscale.runs.starts import HANG_ENDED, RunSigns, plan_starts, read_events
from lmscale.runs.sweep_folder import find_membership, frozen_config, member_submissions, read_sweep
from lmscale.runs.task_rows import keep_valid, latest_task_figures
from lmscale.runs.trackers import find_cut
from lmscale.watch.process import is_gone

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
    mixture_steps: Mapping[int, int]  # sample from which a mixture holds → its step
    evidence: tuple[Path, ...]  # files with what the guard knew when it acted, oldest step first
    faults: tuple[Row, ...]  # what was made to fail on purpose, oldest first
    watch: Row | None  # the watchdog's last word
    problems: tuple[str, ...]  # what is damaged in the folder, and was left out here

    @property
    def attempt_starts(self) -> tuple[Row, ...]:
        return tuple(row for row in self.attempts if row["event"] == "start")

    @property
    def failed_saves(self) -> tuple[Row, ...]:
        """The ends of the attempts that ended because they could not be saved."""
        return tuple(row for row in self.attempts if row.get("reason") in _FAILED_SAVES)

    @property
    def own_figures(self) -> Row:
        """``figures``, once the run has begun: until then a branch has its origin's rows, which say
        where it begins and not how it goes.
        """
        return self.figures if self.starts else {}

    @property
    def heldout(self) -> tuple[str, float] | None:
        """The newest held-out loss and its name: that of the whole sets before that of the loop; of
        several sets the first by name.
        """
        kinds = ("final", "evaluation")
        figures = self.own_figures
        names = [n for n in figures if n.startswith(kinds) and n.endswith("/loss")]
        values = [(n, figures[n]) for n in names if figures[n] is not None]

        def order(value: tuple[str, float]) -> tuple[int, int, str]:
            name = value[0]
            return -self.figure_steps.get(name, 0), kinds.index(name.partition("/")[0]), name

        return min(values, key=order, default=None)


def read_status(folder: str | Path) -> RunStatus:
    """Read a run's folder. Raises ``ConfigError`` for any other folder."""
    folder = Path(folder)
    config = load_run_config(folder)
    problems: list[str] = []

    def read(name: str, kind: TypeAdapter[Any], max_bytes: int = sys.maxsize) -> list[Row]:
        sifted = sift_rows(folder / name, kind, max_bytes=max_bytes)
        problems.extend(sifted.problems)
        return sifted.rows

    attempts = read_attempts(folder, problems)
    ledger = read(LEDGER_FILE, STEP, TAIL_BYTES)
    step = ledger[-1]["step"] + 1 if ledger else 0
    last_sign = _last_sign(folder)
    watch = read(WATCH_FILE, WATCH, TAIL_BYTES)
    starts = plan_starts(read_events(folder, problems), attempts, watch)
    metrics = read(METRICS_FILE, FIGURES, _METRICS_BYTES)
    submissions = read_submissions(folder, problems)
    commits = read_commits(folder, problems)
    problems += _find_lost_attempts(attempts, commits)
    rewinds = tuple(read(REWINDS_FILE, REWIND))
    of_tasks = keep_valid(read(TASKS_FILE, TASK_FIGURES), rewinds)
    figures, figure_steps = _latest_figures(metrics, of_tasks)
    resumes = read(RESUMES_FILE, RESUME)
    problems += _find_cut_ledger(ledger, commits, rewinds, resumes)
    early_stop = "" if (good_end := find_good_end(attempts)) == FINISHED else good_end
    gone = find_gone(folder, attempts)
    return RunStatus(
        folder=folder,
        config=config,
        step=step,
        figures=figures,
        figure_steps=figure_steps,
        metrics=tuple(metrics),
        goodput=_judge_time(attempts, commits, _is_alive(attempts, last_sign, gone)),
        attempts=tuple(attempts),
        starts=starts,
        commits=commits,
        rewinds=rewinds,
        passed_over=tuple(
            {"time": row["time"], **checkpoint}
            for row in resumes
            for checkpoint in row["passed_over"]
        ),
        mixture_steps=dict(_find_mixture_steps(resumes)),
        evidence=tuple(sorted(folder.glob("guard/*/evidence.json"))),
        faults=tuple(read(FAULTS_FILE, FAULT)),
        watch=watch[-1] if watch else None,
        submissions=submissions,
        cancels=run_files.read_cancelled(folder / SLURM_FOLDER),
        is_finished=(bool(early_stop) or step >= config.train.steps)
        and _ended_well(attempts, submissions),
        early_stop=early_stop,
        imported_from=describe_import(folder),
        made_of=describe_made(folder),
        last_sign=last_sign,
        is_gone=gone,
        hang=_find_hang(watch, since=starts[-1].began_at if starts else 0.0),
        problems=(*problems, *find_cut(metrics, step, every=config.train.log_every_steps)),
    )


def _find_mixture_steps(resumes: Sequence[Row]) -> Iterator[tuple[int, int]]:
    for row in resumes:
        if row.get("mixture"):
            yield row["mixture"]["from_n"], row["step"] + 1


def _judge_time(attempts: Sequence[Row], commits: Sequence[Commit], is_alive: bool) -> Goodput:
    """Of a run that is gone without a word, the time since then is not known to be lost; what it
    did beyond its newest checkpoint is.
    """
    if is_alive or find_good_end(attempts):
        return goodput(attempts, time.time() if is_alive else None)
    return goodput(attempts, saved_step=max((commit.step for commit in commits), default=0))


def _is_alive(attempts: Sequence[Row], last_sign: float | None, gone: bool | None) -> bool:
    is_open = bool(attempts) and attempts[-1]["event"] != "end"
    return is_open and not gone and time.time() - (last_sign or 0.0) < ALIVE_SECONDS


def find_gone(folder: Path, attempts: Sequence[Row]) -> bool | None:
    """Whether the newest attempt, which has no end, has lost its rank 0; see ``RunSigns``. None
    too where a start holds the lease that is not an attempt yet.
    """
    start = next((row for row in reversed(attempts) if row["event"] == "start"), {})
    process, lease = start.get("process"), None
    if process is None or attempts[-1]["event"] == "end":
        return None
    with suppress(OSError):
        lease = read_lease(folder)
    is_other = lease is not None and lease.rank0.rpartition(":")[2] != str(process["pid"])
    return None if is_other else is_gone(process)


def _find_cut_ledger(
    ledger: Sequence[Row],
    commits: Sequence[Commit],
    rewinds: Sequence[Row],
    resumes: Sequence[Row],
) -> Iterator[str]:
    has_undone = bool(rewinds) or any(row["passed_over"] for row in resumes)
    has_saved = any(commit.step for commit in commits)  # an import has saved no step of its own
    if has_saved and not (ledger or has_undone):
        yield f"{LEDGER_FILE} holds no step, though there are checkpoints: it was cut."


def _find_lost_attempts(attempts: Sequence[Row], commits: Sequence[Commit]) -> Iterator[str]:
    known = max((row["attempt"] for row in attempts), default=0)
    saved = max((commit.attempt or 0 for commit in commits[-1:]), default=0)
    if saved > known:
        yield (
            f"{ATTEMPTS_FILE} ends with attempt {known}, but the newest checkpoint is of attempt "
            f"{saved}: it was cut."
        )


def _ended_well(attempts: Sequence[Row], submissions: Sequence[Row]) -> bool:
    """Whether the last attempt came to its end, and no other one was submitted since."""
    submitted_at = max((row["time"] for row in submissions if row["kind"] == "train"), default=0.0)
    return bool(find_good_end(attempts)) and submitted_at <= attempts[-1]["time"]


def _find_hang(watch: Sequence[Row], *, since: float) -> str | None:
    """What the watchdog said of a hang, if the ranks have not moved nor ended since."""
    rows = [row for row in watch if row["event"] in ("hang", HANG_ENDED, "moving")]
    hangs = rows and rows[-1]["event"] == "hang" and rows[-1]["time"] >= since
    return str(rows[-1]["text"]) if hangs else None


def read_submissions(folder: str | Path, problems: list[str] | None = None) -> list[Row]:
    """What was submitted to Slurm for this folder, oldest first; of a sweep's run its own task.

    ``problems`` as of ``run_files.read_submissions``.
    """
    folder = Path(folder)
    rows = run_files.read_submissions(folder / SLURM_FOLDER, problems)
    rows = rows or run_files.read_submissions(folder / DATA_SLURM_FOLDER, problems)
    membership = find_membership(folder)
    submissions = {row["submission"] for row in rows}
    of_sweep = member_submissions(*membership, problems) if membership else []
    rows += [row for row in of_sweep if row["submission"] not in submissions]
    return sorted(rows, key=lambda row: row["time"])


def load_run_config(folder: str | Path) -> RunConfig:
    """The configuration that ran, or will run first; its ``run.folder`` is ``folder``, to which the
    run may have been moved. Raises ``ConfigError`` where there is none, or where it cannot be read,
    such as without the package of its family.
    """
    begun = Path(folder) / CONFIG_FILE
    path = begun if begun.is_file() else frozen_config(Path(folder))
    if path is None:
        if (Path(folder) / "config.json").is_file():
            raise ConfigError(
                f"{folder} is not a run's folder, but seems to be a model of Hugging Face's. Make "
                f"it one: lmscale import hf {folder} --out RUN, and name RUN."
            )
        raise ConfigError(
            f"{folder} is not a run's folder: it holds no {CONFIG_FILE}. "
            "`lmscale runs list` shows the runs of a folder."
        )
    try:
        config = load_config(path)
    except ConfigError as error:
        missing = find_missing_packages(Path(folder))
        raise ConfigError([*missing, *error.problems]) from None
    here = config.run.model_copy(update={"folder": str(folder)})
    return config.model_copy(update={"run": here})


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


def _latest_figures(rows: Sequence[Row], task_rows: Sequence[Row]) -> tuple[Row, dict[str, int]]:
    """Rows of steps and of evaluations hold different names: the last of each counts. What other
    processes have measured of tasks counts where it is of no older weights; of a part of a task,
    which says less, only where there is nothing else.
    """
    figures: dict[str, Any] = {}
    steps: dict[str, int] = {}
    for row in rows:
        figures.update(row)
        steps |= {name: row["step"] for name in row}
    for name, (step, value) in latest_task_figures(task_rows, of_parts=False).items():
        if step >= steps.get(name, 0):
            figures[name], steps[name] = value, step
    for name, (step, value) in latest_task_figures(task_rows, of_parts=True).items():
        if name not in figures:
            figures[name], steps[name] = value, step
    return figures, steps
