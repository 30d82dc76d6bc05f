"""What a GPU check is, and what it gets to work with."""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmscale.ranks.ranks import Ranks, open_process_group


class CheckFailedError(Exception):
    """Something is not as it must be; the message says what was seen."""


class NotRun(Exception):  # noqa: N818 - not an error
    """The check does not apply here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The machine as a check sees it."""

    device: torch.device
    folder: Path  # for what a check writes; empty at the beginning
    is_dry_run: bool

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def need_gpu(self) -> None:
        if not self.is_cuda:
            raise NotRun("no GPU")


@dataclass(frozen=True, kw_only=True)
class Check:
    """``run`` gives a line of what was seen, or raises."""

    name: str
    run: Callable[[Bench], str]
    limit_seconds: float = 60.0


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise CheckFailedError(message)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ over all elements, on the CPU in fp64."""
    ours, theirs = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


@functools.cache
def join_group(device: torch.device) -> None:
    """Open the process group of one rank, until the process ends.

    DeepSpeed 0.19.8 keeps groups it made in module variables (utils/groups.py): they outlive a
    group that is closed, and the next engine fails on them.
    """
    group = open_process_group(Ranks(), device)
    group.__enter__()
    atexit.register(group.__exit__, None, None, None)
