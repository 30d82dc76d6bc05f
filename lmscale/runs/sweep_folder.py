"""What a sweep's folder tells: its runs, the values they were given, their job array."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from lmscale.config import RunConfig
from lmscale.errors import ConfigError
from lmscale.files.atomic import write_json
from lmscale.files.jsonl import Row
from lmscale.files.reading import read_plain
from lmscale.files.run_files import CONFIG_FILE, SLURM_FOLDER, SWEEP_FILE, read_submissions
from lmscale.files.strangers import describe_unsafe_name, parse_json, tame


class SweepMember(BaseModel):
    """One run of a sweep."""

    index: int
    run: str
    folder: Path
    values: dict[str, str]


class Sweep(BaseModel):
    """A sweep: runs below a common folder that differ in some settings. ``sweep.json`` holds it."""

    name: str
    root: Path = Field(exclude=True)
    keys: tuple[str, ...]
    base_config: dict[str, Any] = {}
    runs: tuple[SweepMember, ...]
    configs: tuple[RunConfig, ...] = Field(default=(), exclude=True)  # while it is planned
    job: str = ""  # the array of the newest submission


def find_sweep(folder: str | Path, name: str) -> Sweep:
    """The sweep of that name in ``folder``, or of which ``folder`` is the root."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. Name the one that holds the sweep.")
    problems: list[str] = []
    sweeps = {sweep.name: sweep for sweep in find_sweeps(folder, problems)}
    if name not in sweeps:
        there = f"There: {', '.join(sorted(sweeps))}." if sweeps else "It holds no sweeps."
        raise ConfigError([f"{folder}: there is no sweep {name!r}. {there}", *problems])
    return sweeps[name]


def find_sweeps(folder: Path, problems: list[str]) -> list[Sweep]:
    """The sweeps in ``folder``; ``problems`` hears of one that cannot be read."""
    paths = [folder / SWEEP_FILE, *sorted(folder.glob(f"*/{SWEEP_FILE}"))]
    sweeps = []
    for path in filter(Path.is_file, paths):
        try:
            sweeps.append(read_sweep(path.parent))
        except ConfigError as error:
            problems += error.problems
    return sweeps


def read_sweep(root: Path) -> Sweep:
    try:
        status = os.stat(root / SWEEP_FILE)
    except OSError:
        return _read_sweep(root, None)  # which says why
    return _read_sweep(root, (status.st_mtime_ns, status.st_ino, status.st_size))


@lru_cache(maxsize=16)
def _read_sweep(root: Path, version: object) -> Sweep:
    """``version``: of the file, which is read once however many of its runs are looked at."""
    path = root / SWEEP_FILE
    try:
        tree = tame(parse_json(read_plain(path)))
        for row in tree["runs"]:
            if unsafe := describe_unsafe_name(row["run"]):
                raise ValueError(unsafe)
            row["folder"] = root / row["run"]  # wherever the whole folder is seen from
        return Sweep.model_validate({**tree, "root": root})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} cannot be read as a sweep ({type(error).__name__}: {reason}). Launch the "
            "sweep again to write it anew."
        ) from None


def write_sweep(sweep: Sweep) -> None:
    write_json(sweep.root / SWEEP_FILE, sweep.model_dump(mode="json"))


def refuse_sweep(folder: Path) -> None:
    """Raise ``ConfigError`` where one run is to be named, and this is the folder of many."""
    if not (folder / SWEEP_FILE).is_file():
        return
    sweep = read_sweep(folder)
    example = f", such as {sweep.runs[0].folder}" if sweep.runs else ""
    raise ConfigError(
        f"{folder}: this is a sweep; `lmscale runs list {folder} --sweep {sweep.name}` shows its "
        f"runs. Name one of them{example}."
    )


def find_membership(folder: Path) -> tuple[Sweep, SweepMember] | None:
    """The sweep that a run's folder belongs to."""
    root = folder.absolute().parent
    if not (root / SWEEP_FILE).is_file():
        return None
    sweep = read_sweep(root)
    return next(((sweep, m) for m in sweep.runs if m.run == folder.absolute().name), None)


def member_submissions(sweep: Sweep, member: SweepMember, problems: list[str] | None) -> list[Row]:
    """The submissions of the whole array, as those of one of its tasks; ``problems`` as of
    ``read_submissions``.
    """
    rows = read_submissions(sweep.root / SLURM_FOLDER, problems)
    index = member.index
    return [
        {**row, "job": f"{row['job']}_{index}", "jobs": [f"{job}_{index}" for job in row["jobs"]]}
        for row in rows
        if row["kind"] == "train"
    ]


def job_outputs(folder: Path) -> tuple[Path, str]:
    """Where the batch scripts of a run write, and the pattern of their files there."""
    membership = find_membership(folder)
    if membership is None:
        return folder / SLURM_FOLDER, "job-*.out"
    sweep, member = membership
    return sweep.root / SLURM_FOLDER, f"job-*_{member.index}.out"


def frozen_config(folder: Path) -> Path | None:
    """The configuration a run was last submitted with; a submission's name begins with its time."""
    configs = sorted(folder.glob(f"{SLURM_FOLDER}/*/{CONFIG_FILE}"))
    if not configs and (membership := find_membership(folder)):
        sweep, member = membership
        configs = sorted(sweep.root.glob(f"{SLURM_FOLDER}/*/configs/{member.index:03d}.yaml"))
    return configs[-1] if configs else None
