"""What this machine has for a run, one finding a line; a problem says what to do."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import lmscale
from lmscale.ranks.device import cpu_name, peak_tflops
from lmscale.runs.environment import installed_version, num_cores, package_versions

MIN_FREE_BYTES = 2 << 30
SLOW_LOOKUP_SECONDS = 1.0
MIN_SHARED_MEMORY_BYTES = 256 << 20
_OPTIONAL = ("pyarrow", "zstandard", "beautifulsoup4", "s3fs", "gcsfs", "aiohttp")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the diagnosis."""

    subject: str
    is_ok: bool
    found: str
    advice: str = ""
    """Advice for the reader; worth reading even where nothing is broken."""


def diagnose(folders: Sequence[str] = ()) -> list[Finding]:
    """All findings about this machine. Loads torch; no process stays, and no file."""
    return [
        check_python(sys.version_info[:2]),
        *check_packages(),
        *check_devices(),
        check_compiler(),
        *check_network(),
        check_shared_memory(),
        *(check_folder(name, path) for name, path in _folders(folders)),
    ]


def check_python(version: tuple[int, int]) -> Finding:
    python = f"{version[0]}.{version[1]}"
    if (3, 10) <= version <= (3, 13):
        return Finding(subject="python", is_ok=True, found=python)
    advice = "Make the environment with Python 3.10, 3.11, 3.12 or 3.13."
    return Finding(subject="python", is_ok=False, found=python, advice=advice)


def check_packages() -> Iterable[Finding]:
    """What lmscale requires, held against the versions it allows."""
    from packaging.requirements import Requirement

    is_installed = installed_version("lmscale") is not None
    yield Finding(
        subject="lmscale",
        is_ok=is_installed,
        found=f"{lmscale.__version__} in {Path(lmscale.__file__).parent}",
        advice="" if is_installed else "It is not installed in this Python: pip install .",
    )
    if not is_installed:
        versions = package_versions().items()
        shown = ", ".join(f"{name} {version or 'missing'}" for name, version in versions)
        yield Finding(subject="versions", is_ok=True, found=shown)
    declared = [Requirement(text) for text in (requires("lmscale") if is_installed else None) or ()]
    for needed in declared:
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(needed.name)
        is_ok = version is not None and needed.specifier.contains(version, prereleases=True)
        yield Finding(
            subject=needed.name,
            is_ok=is_ok,
            found=version or "not installed",
            advice="" if is_ok else f'pip install "{needed.name}{needed.specifier}"',
        )
    optional = [f"{name} {version}" for name in _OPTIONAL if (version := installed_version(name))]
    yield Finding(subject="optional", is_ok=True, found=", ".join(optional) or "none installed")


def check_devices() -> Iterable[Finding]:
    """GPUs as torch sees them, and whether the driver sees more than torch does."""
    import torch

    yield Finding(subject="cpu", is_ok=True, found=f"{cpu_name()}, {num_cores()} cores")
    has_driver = Path("/proc/driver/nvidia/version").exists()
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        is_ok = hidden or not has_driver
        yield Finding(
            subject="gpu",
            is_ok=is_ok,
            found="none; training runs on the CPU with gloo",
            advice=""
            if is_ok
            else f"There is an NVIDIA driver, but torch {torch.__version__} cannot "
            f"use it: install a CUDA build of torch that the driver supports.",
        )
        return
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        free, total = torch.cuda.mem_get_info(index)
        peak = peak_tflops(name, "bf16")
        yield Finding(
            subject=f"gpu {index}",
            is_ok=True,
            found=f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
            advice=""
            if peak
            else "Its peak is not in the table: set train.peak_tflops to see MFU.",
        )


def check_compiler() -> Finding:
    """DeepSpeed's optimizer for offload and torch.compile build C++ at first use."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    # A virtual environment that is called by its path, not activated, has ninja beside its Python.
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    missing = [name for name, has in (("a C++ compiler", compiler), ("ninja", ninja)) if not has]
    return Finding(
        subject="compiler",
        is_ok=not missing,
        found=f"missing: {' and '.join(missing)}" if missing else f"{compiler}, {ninja}",
        advice="Optimizer offload and torch.compile build C++ at first use: install g++, and "
        "ninja with pip."
        if missing
        else "",
    )


def check_network() -> Iterable[Finding]:
    """What gloo and NCCL would talk over, and whether names resolve fast."""
    names = [name for _, name in socket.if_nameindex()]
    chosen = os.environ.get("GLOO_SOCKET_IFNAME")
    unknown = [name for name in (chosen or "").split(",") if name and name not in names]
    yield Finding(
        subject="interfaces",
        is_ok=not unknown,
        found=f"{', '.join(names)}" + (f"; GLOO_SOCKET_IFNAME={chosen}" if chosen else ""),
        advice=f"GLOO_SOCKET_IFNAME names {', '.join(unknown)}, which is not here: unset it or "
        f"name one that is."
        if unknown
        else "",
    )
    host = socket.gethostname()
    began = time.monotonic()
    try:
        address = socket.gethostbyname(host)
        socket.getnameinfo((address, 0), 0)
    except OSError as error:
        yield Finding(
            subject="host name",
            is_ok=False,
            found=f"{host} does not resolve: {error}",
            advice=f"Ranks on several nodes could not meet: add {host} to /etc/hosts or the DNS. "
            f"One machine alone uses 127.0.0.1 and is not affected.",
        )
        return
    seconds = time.monotonic() - began
    is_fast = seconds < SLOW_LOOKUP_SECONDS
    yield Finding(
        subject="host name",
        is_ok=is_fast,
        found=f"{host} is {address}, looked up both ways in {seconds:.2f} s",
        advice=""
        if is_fast
        else "torch looks every peer's name up and will stall as long at each connection "
        "(pytorch#159007): add the nodes to /etc/hosts.",
    )


def check_shared_memory() -> Finding:
    """Ranks of one node and loader workers exchange data here; containers often have 64 MB."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding(subject="shared memory", is_ok=True, found="no /dev/shm on this system")
    total = shutil.disk_usage(path).total
    is_ok = total >= MIN_SHARED_MEMORY_BYTES
    return Finding(
        subject="shared memory",
        is_ok=is_ok,
        found=f"/dev/shm has {total / 2**20:,.0f} MiB",
        advice="" if is_ok else "In a container, start it with --shm-size=1g or --ipc=host.",
    )


def check_folder(name: str, path: Path) -> Finding:
    """Whether a file can be written there, and how much room there is."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding(
            subject=name,
            is_ok=False,
            found=f"{path}: {error.strerror}",
            advice="Choose another folder or change its permissions.",
        )
    free = shutil.disk_usage(existing).free
    return Finding(
        subject=name,
        is_ok=free >= MIN_FREE_BYTES,
        found=f"{path}, {free / 2**30:.1f} GiB free",
        advice="" if free >= MIN_FREE_BYTES else "A run needs room for shards and checkpoints.",
    )


def _folders(more: Sequence[str]) -> list[tuple[str, Path]]:
    return [
        ("here", Path.cwd()),
        ("temporary", Path(tempfile.gettempdir())),
        *(("folder", Path(name)) for name in more),
    ]
