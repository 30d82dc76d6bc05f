"""Whose folder a run's folder is. Looked at before anything is written to it."""

from __future__ import annotations

import shlex
from pathlib import Path

from lmscale.config.load import load_config
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError, LmscaleError
from lmscale.files.run_files import (
    COMMITS_FILE,
    FAULTS_FILE,
    RESUMES_FILE,
    SAVE_FILE,
    SLURM_FOLDER,
    STOP_FILE,
    WATCH_FILE,
)

CONFIG_FILE = "config.yaml"
# What a launcher, or a start that did not come far, may have put there.
_HARMLESS = {"logs", STOP_FILE, SAVE_FILE, SLURM_FOLDER, "lease.json", "heartbeats", WATCH_FILE}
_HARMLESS |= {COMMITS_FILE, FAULTS_FILE, RESUMES_FILE}


def check_folder(folder: Path, config: RunConfig) -> None:
    """Raise ``ConfigError`` when ``folder`` is another run's, foreign, or cannot be one.

    Names that begin with a dot do not count: a run that was killed inside its very first write
    leaves a temporary file of that kind.
    """
    try:
        _check_folder(folder, config)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be the run's folder: {error}. Set run.folder."
        ) from None


def _check_folder(folder: Path, config: RunConfig) -> None:
    frozen = folder / CONFIG_FILE
    if frozen.is_file():
        owner = _owner_of(frozen)
        if owner is not None and owner != config.run.name:
            raise ConfigError(
                f"{folder} is the folder of the run {owner!r}, not of {config.run.name!r}. Set "
                f"run.folder to another place, or run.name to {owner!r} to go on with that run."
            )
    elif folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        foreign = [name for name in names if name not in _HARMLESS and not name.startswith(".")]
        if {"checkpoints", "ledger.jsonl"} & set(foreign):
            raise ConfigError(_describe_lost_config(folder))
        if foreign:
            raise ConfigError(
                f"{folder} is not empty and holds no run (found {', '.join(foreign[:3])}). "
                "Set run.folder to an empty or new place."
            )
    else:
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if not nearest.is_dir():
            raise ConfigError(f"{nearest} is a file; run.folder must name a folder.")


def _describe_lost_config(folder: Path) -> str:
    """Of a folder that a run has been in. Every submission to Slurm has frozen a copy."""
    frozen = folder / CONFIG_FILE
    copies = sorted(folder.glob(f"{SLURM_FOLDER}/*/{CONFIG_FILE}"))
    copies = [copy for copy in copies if "-train" in copy.parent.name] or copies
    advice = "Copy it back from where there is one"
    if copies:
        command = f"cp {shlex.quote(str(copies[-1]))} {shlex.quote(str(frozen))}"
        advice = f"Copy back what was submitted last (`{command}`)"
    return (
        f"{folder} holds what a run has made, but its {CONFIG_FILE} is missing, so it is not known "
        f"whose it is. {advice}, or set run.folder to an empty or new place."
    )


def _owner_of(frozen: Path) -> str | None:
    try:
        return load_config(frozen).run.name
    except LmscaleError:
        return None  # written by another version, or damaged: it is written anew
