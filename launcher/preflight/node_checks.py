"""What is looked at on one node before the ranks start there, each look bounded in time.

Never run: ``nvidia-smi`` and a site's own health check on a node with GPUs; there was none.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmscale import errors
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.files.locations import is_remote
from lmscale.files.redact import printable, redact
from lmscale.files.shard_files import find_wrong_files, read_shard_sizes
from lmscale.runs.environment import installed_version

TOKEN = "token"
TOKEN_SECONDS = 3.0  # a network file system may show a new file a moment later
LAST_LINES = 5  # of what a health check printed
MAX_LINE = 200  # characters of each
_MAX_OUTPUT = 1 << 16  # bytes that are read of it
_CANNOT_RUN = (126, 127)  # the shell's own exit codes: there is no such command, or it may not run


@dataclass(frozen=True)
class Check:
    """One thing looked at: whether it is as it should be, and what was found."""

    name: str
    is_ok: bool
    found: str


Look = Callable[[], Sequence[Check]]


def run_looks(looks: Mapping[str, Look], seconds: float) -> tuple[list[Check], dict[str, float]]:
    """All looks at once, each on a thread of its own, and the seconds that each look took.

    A look that does not return in time is a failed check: what hangs can only be left behind.
    """
    checks: dict[str, Sequence[Check]] = {}
    took = dict.fromkeys(looks, seconds)

    def look(name: str) -> None:
        began = time.monotonic()
        try:
            checks[name] = looks[name]()
        except (OSError, ValueError, errors.LmscaleError) as error:
            checks[name] = [Check(name, False, str(error))]
        took[name] = round(time.monotonic() - began, 3)

    threads = {name: threading.Thread(target=look, args=(name,), daemon=True) for name in looks}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + seconds
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        text = f"no answer within {seconds:.0f} s" if thread.is_alive() else "failed, see the log"
        checks.setdefault(name, [Check(name, False, text)])
    return [check for name in looks for check in checks[name]], took


def look_at_run_folder(folder: Path, node: str) -> Sequence[Check]:
    """Whether this is the folder that the batch host sees, and takes what is written into it."""
    token = folder / TOKEN
    deadline = time.monotonic() + TOKEN_SECONDS
    while not token.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        attempt = token.read_text().strip()
    except FileNotFoundError:
        text = f"{token}, which the batch script wrote, is not to be seen from here"
        return [Check("run folder", False, text)]
    if attempt != folder.name:
        raise ValueError(f"{token} says {attempt!r}, not {folder.name!r}: not the same folder")
    probe = folder / f".{node}.written"
    content = os.urandom(1 << 16)
    try:
        with open(probe, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if probe.read_bytes() != content:
            raise ValueError(f"{probe} does not read as it was written")
    finally:
        probe.unlink(missing_ok=True)
    return [Check("run folder", True, str(folder))]


def look_at_space(
    name: str, folder: Path, min_gb: float, free_gb: dict[str, float]
) -> Sequence[Check]:
    """Whether ``folder`` is there and has room; notes in ``free_gb`` how much."""
    free_gb[name] = round(shutil.disk_usage(folder).free / 1e9, 1)
    text = f"{free_gb[name]} GB are free in {folder}, {min_gb:g} are wanted"
    is_ok = free_gb[name] >= min_gb
    if not os.access(folder, os.W_OK | os.X_OK):
        is_ok, text = False, f"{folder} may not be written to"
    return [Check(f"space in {name}", is_ok, text)]


def look_at_shards(locations: Mapping[str, str]) -> Sequence[Check]:
    """Whether each dataset's manifest, first and last shard are there, of the right size.

    Datasets at URLs are left to the ranks, whose reading tries again.
    """
    checks = []
    for name, location in locations.items():
        problem = None if is_remote(location) else _find_shard_problem(location)
        checks.append(Check(f"shards of {name}", problem is None, problem or location))
    return checks


def _find_shard_problem(location: str) -> str | None:
    try:
        sizes = read_shard_sizes(location)
    except (OSError, errors.DataError) as error:
        return str(error)
    ends = {name: sizes[name] for name in [*list(sizes)[:1], *list(sizes)[-1:]]}
    wrong = find_wrong_files(location, ends)
    return f"{wrong[0].path.parent}: {wrong[0]}" if wrong else None


def look_at_machine(cluster: ClusterConfig) -> Sequence[Check]:
    """Cores and memory, against what the profile takes for granted."""
    wanted = cluster.ranks_per_node * cluster.cpus_per_task
    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    text = f"{cores} cores, {usable} of them for this task; the profile wants {wanted} and "
    text += f"{cluster.cpus_per_task} a task"
    checks = [Check("cores", cores >= wanted and usable >= cluster.cpus_per_task, text)]
    memory = cluster.memory_kib / 2**20
    if memory:  # else all that the node has
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        available = kib / 2**20
        text = f"{available:.1f} GiB of memory are available, the profile takes {memory:g} GiB"
        # Slurm's figure and the kernel's differ by what the kernel itself takes.
        checks.append(Check("memory", available >= 0.9 * memory, text))
    return checks


def library_versions() -> dict[str, str | None]:
    """Versions that must be equal on all nodes; torch's version without loading torch."""
    return {
        "python": platform.python_version(),
        "torch": installed_version("torch"),
        # A node that does not see the frozen code would run what is installed there.
        "lmscale": str(Path(errors.__file__).parent),
        "libc": " ".join(platform.libc_ver()),
    }


def look_at_gpus(
    num_wanted: int, versions: dict[str, str | None], seconds: float
) -> Sequence[Check]:
    """Whether the driver sees the profile's GPUs; notes in ``versions`` what the GPUs are."""
    if shutil.which("nvidia-smi") is None:  # an image or a profile without it, rather than a node
        text = "nvidia-smi is not installed or not on PATH"
        return [Check("nvidia-smi", False, text)]
    query = "nvidia-smi --query-gpu=name,driver_version --format=csv,noheader"
    code, said = run_bounded(query, seconds)
    gpus = said.splitlines()
    if code != 0:
        text = f"nvidia-smi ended with code {code}: {_as_line(said)}"
        return [Check("GPUs alive", False, text)]
    versions["gpus"] = ", ".join(sorted(set(gpus)))
    text = f"{len(gpus)} GPUs ({versions['gpus']}), the profile says {num_wanted}"
    return [Check("GPUs alive", len(gpus) >= num_wanted, text)]


def look_at_health(command: str, seconds: float) -> Sequence[Check]:
    """What the site's own health check says of this node: exit code 0 is fit.

    A command that cannot be run, or not to its end in time, is the profile's mistake.
    """
    shown = _as_line(command)
    try:
        code, said = run_bounded(command, seconds)
    except TimeoutError as error:
        return [Check("preflight.command", False, f"{shown}: {error}")]
    lines = [line for line in said.splitlines() if line.strip()][-LAST_LINES:]
    text = " | ".join([f"{shown}: ended with code {code}", *map(_as_line, lines)])
    name = "preflight.command" if code in _CANNOT_RUN else "health check"
    return [Check(name, code == 0, text)]


def _as_line(text: str) -> str:
    """What others wrote, for a report that many read: without secrets and escapes, and short."""
    return printable(" ".join(redact(text).split()))[:MAX_LINE]


def run_bounded(command: str, seconds: float) -> tuple[int, str]:
    """Exit code and the end of the output of a line of shell, once the shell itself has ended.

    What it leaves in the background goes on. Raises ``TimeoutError``, with all of it killed.
    """
    # A pipe would not end before the last process that holds it, such as a daemon that was started.
    with tempfile.TemporaryFile() as output:
        fcntl.fcntl(output, fcntl.F_SETFL, os.O_APPEND)  # a script may write to /dev/stderr, too
        with subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise TimeoutError(f"no answer within {seconds:.0f} s") from None
        left_out = max(0, os.fstat(output.fileno()).st_size - _MAX_OUTPUT)
        said = os.pread(output.fileno(), _MAX_OUTPUT, left_out).decode(errors="replace")
    # Half a line could hold a secret without its name.
    return process.returncode, "\n".join(said.splitlines()[1:]) if left_out else said
