"""The device of a rank: its choice, its name, its peak FLOP/s; and the cores of a process."""

from __future__ import annotations

import math
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lmscale.errors import ConfigError, TransientError
from lmscale.ranks.accelerators import find_accelerator
from lmscale.ranks.quota import read_quota
from lmscale.ranks.ranks import Ranks

if TYPE_CHECKING:
    import torch

GPUS_VARIABLE = "LMSCALE_GPUS_PER_NODE"
_LIST_SECONDS = 30.0


def peak_tflops(name: str, precision: str) -> float | None:
    """Peak dense TFLOP/s of a device by its name, for MFU; None when it is not in the table.

    ``precision`` is bf16, fp16 or fp32. CPUs are never in it.
    """
    row = find_accelerator(name)
    if row is None or (precision == "bf16" and not row.has_bf16):
        return None
    return row.peak_fp32 if precision == "fp32" else row.peak_16_bit


def select_device(ranks: Ranks) -> torch.device:
    """The rank's own GPU, made current, or the CPU where there is none.

    Raises ``ConfigError`` when the node has more ranks than GPUs, ``TransientError`` when it has
    fewer GPUs than the batch script says.
    """
    import torch

    is_available = torch.cuda.is_available()
    check_gpus(torch.cuda.device_count() if is_available else 0, os.environ)
    if not is_available:
        return torch.device("cpu")
    device = torch.device("cuda", plan_device_index(ranks, torch.cuda.device_count(), os.environ))
    torch.cuda.set_device(device)
    return device


def plan_device_index(ranks: Ranks, num_devices: int, environ: Mapping[str, str]) -> int:
    """Which of the visible GPUs a rank takes."""
    if ranks.local_world_size <= num_devices:
        return ranks.local_rank
    if num_devices == 1 and _task_sees_one_gpu(environ):
        return 0
    raise ConfigError(
        f"{ranks.local_world_size} ranks on this node, but torch sees {num_devices} GPU"
        f"{'' if num_devices == 1 else 's'}; NCCL takes one rank per GPU. Start at most "
        f"{num_devices}, or set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU."
    )


def check_gpus(num_devices: int, environ: Mapping[str, str]) -> None:
    """Raise ``TransientError`` where torch sees fewer GPUs than ``LMSCALE_GPUS_PER_NODE``.

    A node whose driver has failed would else train on its CPU, and all others wait for it.
    """
    text = environ.get(GPUS_VARIABLE, "0")
    wanted = int(text) if text.isdecimal() else 0
    if num_devices >= wanted or (num_devices == 1 and _task_sees_one_gpu(environ)):
        return
    node = environ.get("SLURMD_NODENAME") or socket.gethostname()
    raise TransientError(
        f"{node}: torch sees {num_devices} GPU{'' if num_devices == 1 else 's'}, and the cluster "
        f"profile says {wanted} a node (CUDA_VISIBLE_DEVICES: "
        f"{environ.get('CUDA_VISIBLE_DEVICES', 'not set')}). {_list_gpus()} If other nodes fare no "
        "better, see that this torch has CUDA and suits the driver; gpus_per_node: 0 trains on the "
        "CPU."
    )


def _list_gpus() -> str:
    """What ``nvidia-smi -L`` says, in a sentence."""
    try:
        process = subprocess.Popen(
            ["nvidia-smi", "-L"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        printed, _ = process.communicate(timeout=_LIST_SECONDS)
    except OSError as error:
        return f"nvidia-smi cannot be run: {error.strerror}."
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: it may hang in the driver, where no signal reaches it
        return f"nvidia-smi -L gives no answer within {_LIST_SECONDS:.0f} s."
    lines = "; ".join(line.strip() for line in printed.splitlines() if line.strip())
    return f"nvidia-smi -L says: {lines[:2000] or 'nothing'}."


def _task_sees_one_gpu(environ: Mapping[str, str]) -> bool:
    """Whether the scheduler gave each task a GPU of its own (srun --gpus-per-task)."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    return "SLURM_STEP_ID" in environ and visible != "" and "," not in visible


def device_name(device: torch.device) -> str:
    """The maker's name for the device, which ``peak_tflops`` knows or does not."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return cpu_name()


def cpu_name() -> str:
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"^model name\s*:(.*)", text, re.MULTILINE):
            return match[1].strip()
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores this process may use, which under Slurm or in a container are fewer than the machine's:
    by its affinity, and by its CPU quota, where part of a core counts as one, as it does for Go and
    the JVM.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(cores, read_quota())))


def free_cores(seconds: float = 0.5) -> int:
    """Cores of this process that nothing uses, over a moment; at least 1, all where unknown."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    before = _idle_ticks()
    time.sleep(seconds)
    idle = [now - before.get(cpu, now) for cpu, now in _idle_ticks().items() if cpu in usable]
    free = sum(idle) / os.sysconf("SC_CLK_TCK") / seconds if idle else num_cores()
    return max(1, min(num_cores(), round(free)))


def _idle_ticks() -> dict[int, int]:
    """Core → how long it had nothing to do since the machine started (proc(5), /proc/stat)."""
    with suppress(OSError):
        text = Path("/proc/stat").read_text(encoding="ascii")
        rows = re.findall(r"^cpu(\d+) \d+ \d+ \d+ (\d+) (\d+)", text, re.MULTILINE)
        return {int(cpu): int(idle) + int(waiting) for cpu, idle, waiting in rows}
    return {}


def product_rates(seconds: float = 0.1) -> dict[str, float]:
    """GFLOP/s of a small matrix product on one thread of this CPU: precision → the best of some.

    Without units for bf16 (AVX512-BF16, AMX), bf16 is many times slower than fp32.
    """
    import torch

    threads, size = torch.get_num_threads(), 256
    torch.set_num_threads(1)
    rates = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.ones(size, size, dtype=dtype)
        torch.mm(matrix, matrix)  # the first one chooses its kernel
        fastest, end = float("inf"), time.perf_counter() + seconds
        while fastest == float("inf") or time.perf_counter() < end:
            began = time.perf_counter()
            torch.mm(matrix, matrix)
            fastest = min(fastest, time.perf_counter() - began)
        rates[precision] = 2 * size**3 / fastest / 1e9
    torch.set_num_threads(threads)
    return rates


def faster_precision(rates: Mapping[str, float]) -> str:
    """What to train in on a CPU with these ``product_rates``: bf16, unless fp32 is faster."""
    return max(("bf16", "fp32"), key=lambda name: rates[name])


def usual_precision(gpu: str) -> str:
    """What to train in on a GPU of this name, or, where it is empty, on this CPU, as its flags tell
    without torch; ``lmscale doctor`` measures it (``faster_precision``).
    """
    if not gpu:
        return "bf16" if _has_bf16_units() else "fp32"
    has_fp16_alone = peak_tflops(gpu, "fp16") and not peak_tflops(gpu, "bf16")
    return "fp16" if has_fp16_alone else "bf16"


def usual_setting(precision: str) -> str:
    """``engine.precision`` of a run for devices of this ``usual_precision``: auto finds bf16 and
    fp32 by itself, wherever the run begins, but not fp16.
    """
    return "fp16" if precision == "fp16" else "auto"


def _has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 faster than fp32, by what Linux says of it."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return bool(re.search(r"\b(?:avx512_bf16|amx_bf16|bf16)\b", flags))


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: the allocator's on CUDA, the resident set on the CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
