"""What ran: the code's git state and the environment, frozen into the run folder."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lmscale
from lmscale.config import RunConfig
from lmscale.config.model import FAMILIES
from lmscale.config.objective import OBJECTIVES
from lmscale.files.atomic import write_json, writing
from lmscale.files.jsonl import read_object
from lmscale.files.redact import may_be_secret, redact, redact_command
from lmscale.ranks.device import cpu_name, num_cores
from lmscale.runs.installed import Differences, Installed, find_differences, read_installed

MAX_DIFF_CHARS = 1_000_000
CODE_FILE = "code.json"
ENVIRONMENT_FILE = "environment.json"
FROZEN_CODE = "code"  # a launcher's copy of the packages, with code.json beside it
PACKAGES = (
    *"torch deepspeed numpy sentencepiece webdataset safetensors tensorboard".split(),
    *"pydantic typer rich fsspec xxhash triton s3fs gcsfs pyarrow".split(),
)
_PREFIXES = (
    *"CUDA_ NCCL_ GLOO_ TORCH PYTORCH_ OMP_ MKL_ KMP_ SLURM_ DS_ DEEPSPEED_ LMSCALE_".split(),
    *"PYTHON MASTER_ NVIDIA_ FI_ UCX_ LD_LIBRARY".split(),
)
_EXACT = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK NODE_RANK TMPDIR".split()


def save_provenance(folder: str | Path, config: RunConfig, code: Mapping[str, Any]) -> None:
    """Write ``code.json``, of ``collect_code``, and ``environment.json``; on rank 0 only."""
    folder = Path(folder)
    with writing("code.json and environment.json", folder):
        write_json(folder / CODE_FILE, code)
        environment = collect_environment() | {"kinds": name_packages(config)}
        write_json(folder / ENVIRONMENT_FILE, environment)


def name_packages(config: RunConfig) -> dict[str, str]:
    """``model.family = sums`` → ``toys 1.0``: the packages that a run's kinds come with."""
    families = {f"model.family = {config.model.family}": FAMILIES.package_of(config.model)}
    objective = config.objective
    objectives = {f"objective.name = {objective.name}": OBJECTIVES.package_of(objective)}
    return {kind: package for kind, package in (families | objectives).items() if package}


def find_missing_packages(folder: Path) -> Iterator[str]:
    """The packages that the kinds of the run in a folder came with, and that are not here."""
    kinds = read_object(folder / ENVIRONMENT_FILE).get("kinds")
    for kind, package in kinds.items() if isinstance(kinds, dict) else ():
        name = str(package).partition(" ")[0]
        if name and installed_version(name) is None:
            yield (
                f"{folder}: its {kind} comes with the package {package}, which is not installed "
                "here. Install it."
            )


def collect_environment() -> dict[str, Any]:
    """Versions, machine and the variables that change how a run behaves; secrets are left out.

    A value that quotes one, such as a URL with a password, is kept without it.
    """
    installed = read_installed()
    return {
        "python": installed.python,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "command": redact_command(sys.argv),
        "packages": {**dict.fromkeys(PACKAGES), **installed.packages},
        "cuda": installed.cuda,
        "driver": installed.driver,
        "cpu": {"name": cpu_name(), "cores": num_cores()},
        "gpus": gpu_names(),
        "variables": select_variables(os.environ),
    }


def find_changes(folder: Path) -> Differences:
    """What is installed otherwise than at the last start of the run in a folder, if it had one."""
    before = read_object(folder / ENVIRONMENT_FILE)
    python, packages = before.get("python"), before.get("packages")
    if not isinstance(python, str) or not isinstance(packages, dict) or "cuda" not in before:
        return Differences(deciding=(), others=())
    versions = {name: version for name, version in packages.items() if isinstance(version, str)}
    then = Installed(
        python=python,
        packages=versions,
        cuda=_text(before["cuda"]),
        driver=_text(before.get("driver")),
    )
    return find_differences(then, read_installed())


def find_other_code(folder: Path, now: Mapping[str, Any]) -> str | None:
    """``A → B``: lmscale's code at the last start of the run in a folder, if that was another one
    than ``now``, of ``collect_code``.
    """
    before = read_object(folder / CODE_FILE)
    if not before or _identify_code(before) == _identify_code(now):
        return None
    return f"{_describe_code(before)} → {_describe_code(now)}"


def _identify_code(code: Mapping[str, Any]) -> tuple[Any, ...]:
    """Elsewhere than in a checkout the version is all that is known."""
    git = _git_of(code)
    return (code.get("version"), git.get("commit"), git.get("diff"))


def _git_of(code: Mapping[str, Any]) -> dict[str, Any]:
    git = code.get("git")
    return git if isinstance(git, dict) else {}


def _describe_code(code: Mapping[str, Any]) -> str:
    git = _git_of(code)
    commit = f", commit {str(git['commit'])[:12]}" if git.get("commit") else ""
    return f"lmscale {code.get('version')}{commit}{' with changes' if git.get('diff') else ''}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def package_versions() -> dict[str, str | None]:
    """Installed versions of ``PACKAGES``; None for a package that is not installed."""
    return {name: installed_version(name) for name in PACKAGES}


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def gpu_names() -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(index) for index in range(count)]


def select_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of known meaning, sorted, without any whose name sounds like a secret."""
    return {
        name: redact(value)
        for name, value in sorted(environ.items())
        if (name.startswith(_PREFIXES) or name in _EXACT) and not may_be_secret(name)
    }


def collect_code(root: Path | None = None) -> dict[str, Any]:
    """The package's version and git state, or those of what a launcher copied it from."""
    root = Path(lmscale.__file__).parents[1] if root is None else root
    code: dict[str, Any] = {"version": lmscale.__version__, "folder": str(root)}
    frozen = read_object(root.parent / "code.json") if root.name == FROZEN_CODE else {}
    if "git" in frozen:
        return {**frozen, "folder": str(root), "frozen_from": frozen.get("folder")}
    tracked = _git(root, "ls-files", "--error-unmatch", "lmscale/__init__.py")
    if tracked is None:  # also a package installed below somebody else's checkout
        return {**code, "git": None, "note": "not a git checkout"}
    difference = _git(root, "diff", "HEAD") or ""
    return {
        **code,
        "git": {
            "commit": (_git(root, "rev-parse", "HEAD") or "").strip() or None,
            "branch": (_git(root, "rev-parse", "--abbrev-ref", "HEAD") or "").strip() or None,
            "changed": (_git(root, "status", "--porcelain") or "").splitlines(),
            # What is cut inside a secret is not known for one: the part that is kept is whole.
            "diff": redact(difference[: 2 * MAX_DIFF_CHARS])[:MAX_DIFF_CHARS],
            "diff_is_cut": len(difference) > MAX_DIFF_CHARS,
        },
    }


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None when it is not installed or refuses."""
    command = ["git", "-C", str(root), *arguments]
    try:
        process = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (FileNotFoundError, NotADirectoryError, subprocess.TimeoutExpired):
        return None
    return process.stdout.decode("utf-8", "replace") if process.returncode == 0 else None
