"""What is looked at on one node before the ranks start there, each look bounded in time.

Never run: ``nvidia-smi`` on a real GPU; there was none. The tests' examples of what it prints are
composed from its manual, not recorded.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale import errors
from lmscale.config.cluster_profile import ClusterConfig

TOKEN = "token"
TOKEN_SECONDS = 3.0  # a network file system may show a new file a moment later
BUSY_SECONDS = 10.0  # what ran here before may still be letting go of the GPUs
IDLE_GPU_MIB = 2048  # the driver's own share and a few contexts of services
COMMAND_SECONDS = 20.0
_UNITS = {"K": 1 / 2**20, "M": 1 / 2**10, "G": 1.0, "T": 2.0**10}

GPU_FIELDS = ("index", "uuid", "name", "driver_version", "memory.used") + (
    "ecc.errors.uncorrected.volatile.total",
)
REMAP_FIELDS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at: whether it is as it should be, and what was found."""

    name: str
    is_ok: bool
    found: str


Look = Callable[[], Sequence[Check]]


def run_looks(looks: Mapping[str, Look], seconds: float) -> tuple[list[Check], dict[str, float]]:
    """All looks at once, each on a thread of its own, and the seconds that each one took.

    One that does not return in time is a failed check: a file system that hangs cannot be
    interrupted, only left behind.
    """
    found: dict[str, Sequence[Check]] = {}
    took: dict[str, float] = {}

    def look(name: str) -> None:
        began = time.monotonic()
        try:
            found[name] = looks[name]()
        except (OSError, ValueError, errors.LmscaleError) as error:
            found[name] = [Check(name=name, is_ok=False, found=str(error))]
        took[name] = round(time.monotonic() - began, 3)

    threads = {name: threading.Thread(target=look, args=(name,), daemon=True) for name in looks}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + seconds
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        if name not in found:
            text = (
                f"no answer within {seconds:.0f} s" if thread.is_alive() else "failed, see the log"
            )
            found[name] = [Check(name=name, is_ok=False, found=text)]
            took[name] = seconds
    return [check for name in looks for check in found[name]], took


def look_at_run_folder(folder: Path, node: str, clock: dict[str, float]) -> Sequence[Check]:
    """Whether this is the folder that the batch host sees, and takes what is written into it.

    Notes in ``clock`` how far this node's clock is ahead of the file server's.
    """
    token = folder / TOKEN
    deadline = time.monotonic() + TOKEN_SECONDS
    while not token.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    own = folder / f".{node}.written"
    content = os.urandom(1 << 16)
    try:
        attempt = token.read_text().strip()
        if attempt != folder.name:
            raise ValueError(f"{token} says {attempt!r}, not {folder.name!r}: not the same folder")
        with open(own, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        clock["ahead_of_folder"] = round(time.time() - own.stat().st_mtime, 3)
        if own.read_bytes() != content:
            raise ValueError(f"{own} does not read as it was written")
    except FileNotFoundError:
        text = f"{token}, which the batch script wrote, is not to be seen from here"
        return [Check(name="run folder", is_ok=False, found=text)]
    except (OSError, ValueError) as error:
        return [Check(name="run folder", is_ok=False, found=str(error))]
    finally:
        own.unlink(missing_ok=True)
    return [Check(name="run folder", is_ok=True, found=str(folder))]


def look_at_space(
    name: str, folder: Path, min_gb: float, free: dict[str, float]
) -> Sequence[Check]:
    """Whether ``folder`` is there and has room; notes in ``free`` how much."""
    free[name] = round(shutil.disk_usage(folder).free / 1e9, 1)
    text = f"{free[name]} GB are free in {folder}, {min_gb:g} are wanted"
    is_ok = free[name] >= min_gb
    if not os.access(folder, os.W_OK | os.X_OK):
        is_ok, text = False, f"{folder} may not be written to"
    return [Check(name=f"space in {name}", is_ok=is_ok, found=text)]


def look_at_shards(locations: Mapping[str, str]) -> Sequence[Check]:
    """Whether each dataset's manifest, first and last shard are there, of the right size."""
    checks = []
    for name, location in locations.items():
        problem = find_shard_problem(location)
        checks.append(
            Check(name=f"shards of {name}", is_ok=problem is None, found=problem or location)
        )
    return checks


def find_shard_problem(location: str) -> str | None:
    """None for a dataset at a URL, too: the ranks' own reading retries."""
    protocol, separator, path = location.partition("://")
    if separator and protocol != "file":
        return None
    folder = Path(path if separator else location).expanduser()
    try:
        shards = json.loads((folder / "manifest.json").read_bytes())["shards"]
        for shard in [*shards[:1], *shards[-1:]]:
            size = (folder / shard["name"]).stat().st_size
            if size != shard["bytes"]:
                return (
                    f"{folder / shard['name']} has {size} bytes, {shard['bytes']} in its manifest"
                )
    except FileNotFoundError as error:
        return f"{error.filename}: there is no such file"
    except (ValueError, KeyError, TypeError) as error:
        return f"{folder / 'manifest.json'}: not a manifest of shards: {error!r}"
    return None


def look_at_machine(cluster: ClusterConfig) -> Sequence[Check]:
    """Cores and memory, against what the profile takes for granted."""
    wanted = cluster.ranks_per_node * cluster.cpus_per_task
    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    text = f"{cores} cores, {usable} of them for this task; the profile wants {wanted} and "
    checks = [
        Check(
            name="cores",
            is_ok=cores >= wanted and usable >= cluster.cpus_per_task,
            found=text + f"{cluster.cpus_per_task} a task",
        )
    ]
    memory = memory_gib(cluster.memory_per_node or "0")
    if memory:  # 0 is all there is
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        available = kib["MemAvailable"] / 2**20
        text = f"{available:.1f} GiB of memory are available, the profile takes {memory:g} GiB"
        # Slurm's figure and the kernel's differ by what the kernel itself takes.
        checks.append(Check(name="memory", is_ok=available >= 0.9 * memory, found=text))
    return checks


def memory_gib(text: str) -> float:
    """``64G``, ``512000M`` or ``512000``, which are megabytes to Slurm, in GiB."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.upper())
    return int(match[1]) * _UNITS[match[2] or "M"] if match else 0.0


def library_versions() -> dict[str, str | None]:
    """What has to be the same on all nodes; torch's version without loading torch."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = None
    return {
        "python": platform.python_version(),
        "torch": torch,
        # A node that does not see the frozen code would run what is installed there.
        "lmscale": str(Path(errors.__file__).parent),
        "libc": " ".join(platform.libc_ver()),
        "kernel": platform.release(),
    }


def look_at_gpus(
    count: int, environ: Mapping[str, str], versions: dict[str, Any]
) -> Sequence[Check]:
    """Whether the GPUs are all there, sound and idle; notes in ``versions`` what they are.

    Raises ``ValueError`` where the driver does not answer, or says that it cannot.
    """
    if shutil.which("nvidia-smi") is None:  # an image or a profile without it, rather than a node
        text = "nvidia-smi is not installed or not on PATH"
        return [Check(name="nvidia-smi", is_ok=False, found=text)]
    gpus = select_visible(parse_rows(_ask("--query-gpu", GPU_FIELDS), GPU_FIELDS), environ)
    versions["driver"] = ", ".join(sorted({gpu["driver_version"] for gpu in gpus}))
    versions["gpus"] = ", ".join(sorted({gpu["name"] for gpu in gpus}))
    names = f"{len(gpus)} GPUs ({versions['gpus']}), the profile says {count}"
    remapped = parse_rows(_ask("--query-remapped-rows", REMAP_FIELDS, optional=True), REMAP_FIELDS)
    errors = find_gpu_errors(gpus, remapped)
    busy = find_busy(gpus, _processes())
    deadline = time.monotonic() + BUSY_SECONDS
    while busy and time.monotonic() < deadline:
        time.sleep(1.0)
        gpus = select_visible(parse_rows(_ask("--query-gpu", GPU_FIELDS), GPU_FIELDS), environ)
        busy = find_busy(gpus, _processes())
    return [
        Check(name="GPUs alive", is_ok=len(gpus) >= count, found=names),
        Check(name="GPU errors", is_ok=not errors, found="; ".join(errors) or "none"),
        Check(name="GPUs idle", is_ok=not busy, found="; ".join(busy) or "idle"),
    ]


def _processes() -> list[dict[str, str]]:
    return parse_rows(_ask("--query-compute-apps", PROCESS_FIELDS), PROCESS_FIELDS)


def _ask(query: str, fields: Sequence[str], optional: bool = False) -> str:
    """What ``nvidia-smi`` prints; "" where an optional query is not known to it."""
    command = ["nvidia-smi", f"{query}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"nvidia-smi gave no answer within {COMMAND_SECONDS:.0f} s") from None
    if done.returncode != 0:
        if optional:
            return ""
        said = " ".join((done.stdout + done.stderr).split())
        raise ValueError(f"nvidia-smi ended with code {done.returncode}: {said[:200]}")
    return done.stdout


def parse_rows(text: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """Rows of ``--format=csv,noheader,nounits``; the last field may hold commas.

    Raises ``ValueError`` for a row of another form: what it says is then the finding.
    """
    rows = []
    for line in filter(None, map(str.strip, text.splitlines())):
        parts = [part.strip() for part in line.split(",", len(fields) - 1)]
        if len(parts) != len(fields):
            raise ValueError(f"nvidia-smi says: {line}")
        rows.append(dict(zip(fields, parts, strict=True)))
    return rows


def select_visible(
    gpus: Sequence[dict[str, str]], environ: Mapping[str, str]
) -> list[dict[str, str]]:
    """The job's own GPUs, where Slurm names them and does not hide the others."""
    wanted = [part.strip() for part in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if not any(wanted):
        return list(gpus)
    return [gpu for gpu in gpus if gpu["index"] in wanted or gpu["uuid"] in wanted]


def find_gpu_errors(
    gpus: Sequence[dict[str, str]], remapped: Sequence[dict[str, str]]
) -> list[str]:
    """Errors of memory that a run would die of, or that a reset of the GPU has to finish.

    A value in brackets is none, such as [N/A] of a GPU that does not count; any other such text,
    [GPU requires reset] or [Unknown Error], is an error itself.
    """
    problems = []
    for gpu in gpus:
        count = gpu["ecc.errors.uncorrected.volatile.total"]
        if count.isdecimal() and int(count):
            problems.append(
                f"GPU {gpu['index']}: {count} uncorrected memory errors since its start"
            )
        bad = {
            text for text in gpu.values() if re.search(r"\[.*(reset|error|lost).*\]", text, re.I)
        }
        problems += [f"GPU {gpu['index']}: {text}" for text in sorted(bad)]
    index = {gpu["uuid"]: gpu["index"] for gpu in gpus}
    for row in remapped:
        number = index.get(row["gpu_uuid"])
        if number is None:
            continue
        if row["remapped_rows.failure"].lower() == "yes":
            problems.append(f"GPU {number}: remapping of memory rows has failed: replace it")
        elif row["remapped_rows.pending"].lower() == "yes":
            problems.append(f"GPU {number}: remapping of memory rows is pending: reset it")
    return problems


def find_busy(gpus: Sequence[dict[str, str]], processes: Sequence[dict[str, str]]) -> list[str]:
    """Who else computes on the GPUs; nothing of ours has begun yet."""
    index = {gpu["uuid"]: gpu["index"] for gpu in gpus}
    busy = [
        f"GPU {index[row['gpu_uuid']]}: process {row['pid']} ({row['process_name']})"
        for row in processes
        if row["gpu_uuid"] in index
    ]
    for gpu in gpus:
        used = gpu["memory.used"]
        if used.isdecimal() and int(used) > IDLE_GPU_MIB:
            busy.append(f"GPU {gpu['index']}: {used} MiB of its memory are in use")
    return busy
