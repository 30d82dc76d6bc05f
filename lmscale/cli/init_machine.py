"""The machine and the size that ``lmscale init`` plans for: as they are given, or found."""

from __future__ import annotations

import os
import re

from lmscale.cli.init_plan import CORE_FLOPS, GPU_SHARE, UNKNOWN_GPU_FLOPS, Device
from lmscale.errors import ConfigError
from lmscale.ranks.accelerators import ACCELERATORS, find_accelerator
from lmscale.ranks.device import cpu_name, num_cores, peak_tflops, usual_precision
from lmscale.ranks.gpus import find_gpus

HERE = "this machine's"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMbBgG]?)")
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}
_GPUS = re.compile(r"(\d{1,5})(?:\s*[x×*]\s*(.+))?")


def parse_size(text: str) -> int:
    """``125M``, ``1.3B`` or a number. Raises ``ConfigError``."""
    match = _SIZE.fullmatch(text.strip())
    number = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    if not 1e3 <= number <= 1e12:
        raise ConfigError(f"--parameters {text}: give a number such as 125M or 1.3B.")
    return int(number)


def plan_device(gpus: str | None) -> Device:
    """What ``--gpus`` names, or what this machine has."""
    given = _parse_gpus(gpus) if gpus and gpus != HERE else None
    found = find_gpus() if given is None or (given[0] and not given[1]) else None
    count, kind = given or ((found.count if found else 0), "")
    if not count:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cores = num_cores()
        return Device(
            ranks=1,
            memory_bytes=memory // 2,  # others live there, too
            flops=CORE_FLOPS * cores,
            precision=usual_precision(""),
            described=f"{cpu_name()}, {cores} cores, {memory / 2**30:.0f} GiB",
            is_gpu=False,
        )
    if kind:
        memory = _memory_of(kind)
    elif found and found.count:
        kind, memory = found.name, found.memory_bytes
    else:
        raise ConfigError(
            f"--gpus {gpus}: there is none here, so say which: {count}xH100, or {count}x24GB."
        )
    peak = peak_tflops(kind, "bf16")
    fp16 = peak_tflops(kind, "fp16")
    return Device(
        ranks=count,
        memory_bytes=memory,
        flops=count * ((peak or fp16 or 0) * 1e12 * GPU_SHARE or UNKNOWN_GPU_FLOPS),
        precision=usual_precision(kind),
        described=f"{count} × {kind}, {memory / 2**30:.0f} GiB each",
        is_gpu=True,
    )


def _parse_gpus(text: str) -> tuple[int, str]:
    match = _GPUS.fullmatch(text.strip())
    if not match or int(match[1]) > 8192:
        raise ConfigError(f"--gpus {text}: give a number such as 8, or 8xH100, or 8x24GB.")
    return int(match[1]), (match[2] or "").strip()


def _memory_of(kind: str) -> int:
    """Bytes of a GPU by its name, or by what is given in place of one."""
    match = re.search(r"(\d{1,4})\s*G(?:i?B)?\b", kind, re.IGNORECASE)
    if match:
        return int(match[1]) * 2**30
    row = find_accelerator(kind)
    if row is None or row.memory_gib is None:
        known = ", ".join(row.key for row in ACCELERATORS if row.memory_gib)
        raise ConfigError(
            f"--gpus {kind}: its memory is not known; known are {known}. Give it as 8x24GB."
        )
    return row.memory_gib * 2**30
