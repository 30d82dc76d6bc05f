"""What ran: the code's git state and the environment, frozen into the run folder."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lmscale.files.atomic import write_json, writing
from lmscale.files.cores import num_cores
from lmscale.files.redact import may_be_secret, redact, redact_command
from lmscale.ranks.device import cpu_name
from lmscale.runs.code_state import collect_code

PACKAGES = (
    ("torch", "deepspeed", "numpy", "sentencepiece", "webdataset", "safetensors", "tensorboard")
    + ("pydantic", "typer", "rich", "fsspec", "xxhash", "triton", "s3fs", "gcsfs", "pyarrow")
)  # fmt: skip
_PREFIXES = (
    "CUDA_",
    "NCCL_",
    "GLOO_",
    "TORCH",
    "PYTORCH_",
    "OMP_",
    "MKL_",
    "KMP_",
    "SLURM_",
    "DS_",
)
_PREFIXES += ("DEEPSPEED_", "LMSCALE_", "PYTHON", "MASTER_", "NVIDIA_", "FI_", "UCX_", "LD_LIBRARY")
_EXACT = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "TMPDIR",
)


def save_provenance(folder: str | Path) -> None:
    """Write ``code.json`` and ``environment.json``; on rank 0 only."""
    folder = Path(folder)
    with writing("code.json and environment.json", folder):
        write_json(folder / "code.json", collect_code())
        write_json(folder / "environment.json", collect_environment())


def collect_environment() -> dict[str, Any]:
    """Versions, machine and the variables that change how a run behaves; secrets are left out.

    A value that quotes one, such as a URL with a password, is kept without it.
    """
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "command": redact_command(sys.argv),
        "packages": package_versions(),
        "cpu": {"name": cpu_name(), "cores": num_cores()},
        "gpus": gpu_names(),
        "variables": select_variables(os.environ),
    }


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
