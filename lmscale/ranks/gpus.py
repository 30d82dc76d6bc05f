"""The GPUs of a machine, found without loading torch here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ASK_SECONDS = 120.0  # to load torch from a slow disk
# What a driver puts there: NVIDIA's, AMD's, and Windows' for WSL.
_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")
_ASK = """
import json, torch
cards = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
print(json.dumps([[card.name, card.total_memory] for card in cards]))
"""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """What torch can train on."""

    count: int
    name: str = ""  # of the first one
    memory_bytes: int = 0  # of the smallest one
    has_driver: bool = False  # which, with a count of 0, torch cannot use


def find_gpus(environ: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> Gpus:
    """The GPUs that torch sees. Where no driver is nothing is loaded; else another process asks.

    A driver that torch cannot use counts as none: ``lmscale doctor`` says why.
    """
    if environ.get("CUDA_VISIBLE_DEVICES") == "" or not any(
        next(devices.glob(pattern), None) for pattern in _DEVICES
    ):
        return Gpus(count=0)
    cards = []
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        asked = subprocess.run(
            [sys.executable, "-c", _ASK],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_SECONDS,
            check=True,
        )
        cards = json.loads(asked.stdout)
    if not cards:
        return Gpus(count=0, has_driver=True)
    smallest = min(int(memory) for _, memory in cards)
    return Gpus(count=len(cards), name=str(cards[0][0]), memory_bytes=smallest, has_driver=True)
