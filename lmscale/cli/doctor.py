"""``lmscale doctor``: whether this machine has what a run needs, and what to do if not."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import lmscale
from lmscale.cli.options import JsonOption, echo_json
from lmscale.errors import EXIT_USER
from lmscale.files.redact import printable
from lmscale.ranks.device import cpu_name, faster_precision, peak_tflops, product_rates
from lmscale.ranks.slow import find_slow_build, judge_disk, read_mounts
from lmscale.runs.environment import installed_version, num_cores, package_versions

MIN_FREE_BYTES = 2 << 30
SLOW_LOOKUP_SECONDS = 1.0
MIN_SHARED_MEMORY_BYTES = 256 << 20
_OPTIONAL = ("pyarrow", "zstandard", "beautifulsoup4", "s3fs", "gcsfs", "aiohttp")


def doctor(
    folder: Annotated[
        list[str] | None,
        typer.Option("--folder", help="Also check that a run could write here."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: packages, devices, compiler, network, folders. Exit code 2: a problem."""
    findings = diagnose(folder or [])
    if as_json:
        echo_json([asdict(finding) for finding in findings])
    else:
        console = Console(soft_wrap=True, highlight=False)
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            mark = Text("ok      ", "green") if finding.is_ok else Text("problem ", "bold red")
            line = f"{finding.subject:{width}}  {finding.found}"
            console.print(mark + Text(printable(line), "default"))
            if finding.advice:
                advice = f"{'':8}{'':{width}}  → {finding.advice}"
                console.print(Text(printable(advice), "default"))
    if not all(finding.is_ok for finding in findings):
        raise typer.Exit(EXIT_USER)


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    subject: str
    is_ok: bool
    found: str
    advice: str = ""  # for the reader; worth reading even where nothing is broken


def judge(subject: str, is_ok: bool, what: str, advice: str) -> Finding:
    """A finding whose advice is for the case that something is wrong."""
    return Finding(subject, is_ok, what, "" if is_ok else advice)


def diagnose(folders: Sequence[str] = ()) -> list[Finding]:
    """All findings about this machine. Loads torch; no process stays, and no file."""
    return [
        check_python(sys.version_info[:2]),
        *check_packages(),
        *check_devices(),
        *check_precision(),
        *check_slow(),
        check_compiler(),
        *check_network(),
        check_shared_memory(),
        check_folder("here", Path.cwd()),
        check_folder("temporary", Path(tempfile.gettempdir())),
        *(check_folder("folder", Path(name)) for name in folders),
    ]


def check_python(version: tuple[int, int]) -> Finding:
    return judge(
        "python",
        (3, 10) <= version <= (3, 13),
        f"{version[0]}.{version[1]}",
        "Make the environment with Python 3.10, 3.11, 3.12 or 3.13.",
    )


def check_packages() -> Iterable[Finding]:
    """What lmscale requires, held against the versions it allows."""
    from packaging.requirements import Requirement

    is_installed = installed_version("lmscale") is not None
    yield judge(
        "lmscale",
        is_installed,
        f"{lmscale.__version__} in {Path(lmscale.__file__).parent}",
        "It is not installed in this Python: pip install -e . -c constraints.txt in the clone.",
    )
    if not is_installed:
        versions = package_versions().items()
        shown = ", ".join(f"{name} {version or 'missing'}" for name, version in versions)
        yield Finding("versions", True, shown)
    for needed in map(Requirement, (requires("lmscale") if is_installed else None) or ()):
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(needed.name)
        yield judge(
            needed.name,
            version is not None and needed.specifier.contains(version, prereleases=True),
            version or "not installed",
            f'pip install "{needed.name}{needed.specifier}" -c constraints.txt',
        )
    optional = [f"{name} {version}" for name in _OPTIONAL if (version := installed_version(name))]
    yield Finding("optional", True, ", ".join(optional) or "none installed")


def check_devices() -> Iterable[Finding]:
    """GPUs as torch sees them, and whether the driver sees more than torch does."""
    import torch

    yield Finding("cpu", True, f"{cpu_name()}, {num_cores()} cores")
    if not torch.cuda.is_available():
        is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        yield judge(
            "gpu",
            is_hidden or not Path("/proc/driver/nvidia/version").exists(),
            "none; training runs on the CPU with gloo",
            f"There is an NVIDIA driver, but torch {torch.__version__} cannot "
            f"use it: install a CUDA build of torch that the driver supports.",
        )
        return
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        free, total = torch.cuda.mem_get_info(index)
        described = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        advice = "Its peak is not in the table: set train.peak_tflops to see MFU."
        yield Finding(f"gpu {index}", True, described, "" if peak_tflops(name, "bf16") else advice)


def check_precision() -> Iterable[Finding]:
    """What engine.precision: auto is on this CPU; with a GPU nothing is asked of the CPU."""
    import torch

    if torch.cuda.is_available():
        return
    rates = product_rates()
    ratio = rates["bf16"] / rates["fp32"]
    shown = ", ".join(f"{name} {rate:,.1f}" for name, rate in rates.items())
    yield Finding(
        "precision",
        True,
        f"matrix products on one core, GFLOP/s: {shown}; bf16 is {ratio:.2g} × as fast, so "
        f"engine.precision: auto is {faster_precision(rates)} here",
    )


def check_slow() -> Iterable[Finding]:
    """What would make every step slower than it has to be; nothing, as a rule."""
    disk = judge_disk("TMPDIR", Path(tempfile.gettempdir()), read_mounts())
    for slow in (*find_slow_build(os.environ), *disk):
        yield Finding("slow", True, slow.found, slow.advice)


def check_compiler() -> Finding:
    """DeepSpeed's optimizer for offload and torch.compile build C++ at first use."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    # A virtual environment that is called by its path, not activated, has ninja beside its Python.
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    missing = [name for name, has in (("a C++ compiler", compiler), ("ninja", ninja)) if not has]
    return judge(
        "compiler",
        not missing,
        f"missing: {' and '.join(missing)}" if missing else f"{compiler}, {ninja}",
        "Optimizer offload and torch.compile build C++ at first use: install g++, and "
        "ninja with pip.",
    )


def check_network() -> Iterable[Finding]:
    """What gloo and NCCL would talk over, and whether names resolve fast."""
    names = [name for _, name in socket.if_nameindex()]
    chosen = os.environ.get("GLOO_SOCKET_IFNAME")
    unknown = [name for name in (chosen or "").split(",") if name and name not in names]
    yield judge(
        "interfaces",
        not unknown,
        f"{', '.join(names)}" + (f"; GLOO_SOCKET_IFNAME={chosen}" if chosen else ""),
        f"GLOO_SOCKET_IFNAME names {', '.join(unknown)}, which is not here: unset it or "
        f"name one that is.",
    )
    host = socket.gethostname()
    began = time.monotonic()
    try:
        address = socket.gethostbyname(host)
        socket.getnameinfo((address, 0), 0)
    except OSError as error:
        yield Finding(
            "host name",
            False,
            f"{host} does not resolve: {error}",
            f"Ranks on several nodes could not meet: add {host} to /etc/hosts or the DNS. "
            f"One machine alone uses 127.0.0.1 and is not affected.",
        )
        return
    seconds = time.monotonic() - began
    yield judge(
        "host name",
        seconds < SLOW_LOOKUP_SECONDS,
        f"{host} is {address}, looked up both ways in {seconds:.2f} s",
        "torch looks every peer's name up and will stall as long at each connection "
        "(pytorch#159007): add the nodes to /etc/hosts.",
    )


def check_shared_memory() -> Finding:
    """Ranks of one node and loader workers exchange data here; containers often have 64 MB."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("shared memory", True, "no /dev/shm on this system")
    total = shutil.disk_usage(path).total
    return judge(
        "shared memory",
        total >= MIN_SHARED_MEMORY_BYTES,
        f"/dev/shm has {total / 2**20:,.0f} MiB",
        "In a container, start it with --shm-size=1g or --ipc=host.",
    )


def check_folder(name: str, path: Path) -> Finding:
    """Whether a file can be written there, and how much room there is."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        advice = "Choose another folder or change its permissions."
        return Finding(name, False, f"{path}: {error.strerror}", advice)
    free_space = f"{path}, {free / 2**30:.1f} GiB free"
    return judge(
        name, free >= MIN_FREE_BYTES, free_space, "A run needs room for shards and checkpoints."
    )
