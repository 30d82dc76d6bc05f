"""Looking at runs: what their folders say and what Slurm says, read for the commands to show."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.history import Stretch, excluded_nodes, plan_history
from launcher.slurm import sacct, squeue
from launcher.status import TRAIN, RunState, SlurmAnswer, jobs_of, judge_run, newest_submission
from lmscale.checkpoint.manifest import parse_manifest
from lmscale.cli.runs.mixtures import Mixtures, read_mixtures
from lmscale.errors import CheckpointError, ClusterError, LmscaleError, RefusedError
from lmscale.files.jsonl import read_tail
from lmscale.files.reading import read_plain
from lmscale.files.shard_files import MANIFEST, find_wrong_files
from lmscale.runs.commits import Commit, read_commits
from lmscale.runs.goodput import Forecast, forecast
from lmscale.runs.origins import Origin, read_origins
from lmscale.runs.profiles import find_profiles
from lmscale.runs.run_folder import read_status
from lmscale.runs.starts import is_one_of, newest_of
from lmscale.runs.sweep_folder import job_outputs, refuse_sweep
from lmscale.watch.heartbeat import read_heartbeats

if TYPE_CHECKING:
    from lmscale.runs.run_folder import RunStatus
    from lmscale.watch.heartbeat import Beat

_ERROR = "error:"
_BEGIN = re.compile(r" lmscale: starting \d+ rank")  # the batch script's word before the ranks'
_MAX_ERRORS, _MAX_FILES = 5, 16


@dataclass(frozen=True, kw_only=True)
class RunLook:
    status: RunStatus
    state: RunState


@dataclass(frozen=True, kw_only=True)
class Looks:
    runs: Mapping[Path, RunLook | LmscaleError]  # a folder that cannot be read has its error
    answer: SlurmAnswer | None
    note: str  # why Slurm was not asked, or did not answer; "" when there is nothing to say


def look_at(folders: Sequence[Path], *, with_past: bool = False) -> Looks:
    """Read the folders, and ask Slurm of all their jobs at once, ``with_past`` of past ones too."""
    statuses: dict[Path, RunStatus] = {}
    errors: dict[Path, LmscaleError] = {}
    for folder in folders:
        try:
            statuses[folder] = read_status(folder)
        except LmscaleError as error:
            errors[folder] = error
    answer, note = _ask_slurm(list(statuses.values()), with_past=with_past)
    now = time.time()
    looks = {
        folder: RunLook(status=status, state=judge_run(status, answer, now))
        for folder, status in statuses.items()
    }
    runs = {folder: looks.get(folder) or errors[folder] for folder in folders}
    return Looks(runs=runs, answer=answer, note=note)


def _ask_slurm(statuses: Sequence[RunStatus], *, with_past: bool) -> tuple[SlurmAnswer | None, str]:
    asked = [job for status in statuses for job in _jobs_to_ask(status, with_past)]
    if not asked:
        return None, ""
    if shutil.which("squeue") is None:
        return None, "Slurm was not asked, for there is no squeue on this machine."
    try:
        queue = squeue(asked)
    except ClusterError as error:
        return None, f"Slurm was not asked: {error}"
    active = [job.job for job in queue if job.is_active]
    gone = [job for job in asked if with_past or not any(is_one_of(a, [job]) for a in active)]
    try:
        return SlurmAnswer(queue=queue, accounts=sacct(gone)), ""
    except ClusterError as error:
        return SlurmAnswer(queue=queue), f"The accounting was not asked: {error}"


def _jobs_to_ask(status: RunStatus, with_past: bool) -> tuple[str, ...]:
    if with_past:
        own = [job for row in status.submissions for job in jobs_of(row)]
        return tuple(dict.fromkeys((*own, *_upstream_of(status))))
    newest = newest_submission(status.submissions)
    return () if newest is None or status.is_finished else (*jobs_of(newest), *_upstream_of(status))


def _upstream_of(status: RunStatus) -> tuple[str, ...]:
    """The jobs that make what it reads, until it has begun."""
    newest = newest_submission(status.submissions)
    if newest is None or newest_of(status.starts, jobs_of(newest)) is not None:
        return ()
    return tuple(stage["job"] for stage in newest.get("pipeline", ()))


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """One run, with its past and its expected end."""

    look: RunLook
    note: str  # why Slurm was not asked; "" when there is nothing to say
    errors: Sequence[str]  # what the last attempt of a run that failed said was wrong
    history: Sequence[Stretch]
    other_jobs: Sequence[dict[str, str]]  # that do not train and are not over
    forecast: Forecast | None
    damaged: Sequence[str]  # what is wrong with checkpoints, at a look
    origins: Mapping[str, Origin]  # what it began with, by the keys of runs/origins.py
    heartbeats: Sequence[Beat]  # of a run that is hung or silent: where each rank is
    mixtures: Mixtures | None  # None where no start has recorded any

    def to_json(self) -> dict[str, Any]:
        """What ``runs status --json`` prints beyond ``runs list --json``."""
        status = self.look.status
        last = status.commits[-1] if status.commits else None
        return {
            **{name: origin.to_json() for name, origin in self.origins.items()},
            "last_checkpoint": last
            and {**last.model_dump(include={"step", "bytes", "reason"}), "committed_at": last.time},
            "damaged_checkpoints": list(self.damaged),
            "failed_saves": list(status.failed_saves),
            "passed_over": list(status.passed_over),
            "mixture": self.mixtures and self.mixtures.to_json(),
            "rewinds": list(status.rewinds),
            "evidence": list(map(str, status.evidence)),
            "faults": list(status.faults),
            "errors": list(self.errors),
            "slurm_note": self.note,
            "forecast": self.forecast and asdict(self.forecast),
            "history": [asdict(stretch) for stretch in self.history],
            "other_jobs": list(self.other_jobs),
            "excluded_nodes": excluded_nodes(status.starts),
            "watch": status.watch,
            "heartbeats": [asdict(beat) for beat in self.heartbeats],
            "submissions": list(status.submissions),
            "profiles": {
                steps: list(map(str, found))
                for steps, found in find_profiles(status.folder).items()
            },
        }


def read_page(run: Path) -> RunPage:
    """Look at one run. Raises ``ConfigError`` where the folder is none, or is a sweep's."""
    refuse_sweep(run)
    looks = look_at([run], with_past=True)
    look = looks.runs[run]
    if isinstance(look, LmscaleError):
        raise look
    status, state, answer = look.status, look.state, looks.answer or SlurmAnswer()
    saved_step = max((commit.step for commit in status.commits), default=0)
    may_go_on = state.is_active and state.name not in ("queued", "held")
    return RunPage(
        look=look,
        note=looks.note,
        errors=_read_errors(look) if state.name == "failed" else (),
        history=plan_history(
            status.starts,
            accounts=answer.accounts,
            submissions=status.submissions,
            saved_step=None if status.is_finished else saved_step,
            done_step=status.step,
            active_step=status.step if may_go_on else None,
        ),
        other_jobs=[
            {"kind": str(row["kind"])}
            | {name: getattr(job, name) for name in ("job", "state", "reason", "nodes")}
            for row in status.submissions
            for job in answer.queue
            if row["kind"] != TRAIN and job.is_active and is_one_of(job.job, jobs_of(row))
        ],
        forecast=forecast(
            status.metrics,
            starts=[row["time"] for row in status.attempt_starts],
            step=status.step,
            steps=status.config.train.steps,
            goodput=status.goodput.fraction,
        ),
        damaged=find_damaged(run, status.commits),
        origins=read_origins(run),
        heartbeats=read_heartbeats(run) if state.name in ("hung", "silent") else (),
        mixtures=read_mixtures(run, status.mixture_steps),
    )


def find_damaged(run: Path, commits: Sequence[Commit]) -> list[str]:
    """What a look at names and sizes shows of the checkpoints that lie in folders; `lmscale
    checkpoint verify` reads every byte.
    """
    problems: dict[tuple[str, str], list[str]] = {}
    for commit in commits:
        place = run / commit.folder
        if commit.is_elsewhere and not place.parent.is_dir():  # not to be seen from here
            continue
        try:
            manifest = parse_manifest(read_plain(place / MANIFEST).decode(), commit.folder)
            sizes = {entry.name: entry.bytes for entry in manifest.files}
            wrong = [f"{commit.folder}: {file}" for file in find_wrong_files(place, sizes)]
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            wrong = [f"{commit.folder}: its {MANIFEST} cannot be read: {why}"]
        except RefusedError:  # by a newer lmscale
            continue
        except CheckpointError as error:
            wrong = list(error.problems)
        if wrong:
            problems[commit.key] = wrong
    # Those that the run has removed since are none.
    there = [commit.key for commit in read_commits(run)] if problems else []
    return [problem for key in there for problem in problems.get(key, ())]


def _read_errors(look: RunLook) -> list[str]:
    """The ``error:`` lines of the last start: of its job's output, else of its ranks'."""
    folder = look.status.folder
    lines = _tail_lines(job_outputs(folder)[0] / f"job-{look.state.job}.out")
    # The output of a job goes on over its requeues.
    begins = [number for number, line in enumerate(lines) if _BEGIN.search(line)]
    errors = [line for line in lines[begins[-1] if begins else 0 :] if line.startswith(_ERROR)]
    if not errors:
        began_at = look.status.starts[-1].began_at if look.status.starts else 0.0
        files = [f for f in (folder / "logs").glob("rank-*.out") if f.stat().st_mtime >= began_at]
        tails = (line for file in sorted(files)[:_MAX_FILES] for line in _tail_lines(file))
        errors = [line for line in tails if line.startswith(_ERROR)]
    return list(dict.fromkeys(errors))[:_MAX_ERRORS]


def _tail_lines(path: Path) -> list[str]:
    try:
        return read_tail(path).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
