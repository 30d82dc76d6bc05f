"""Faults on purpose: what ``LMSCALE_FAULTS`` names goes wrong in a run that allows it. For tests.

The code that may be hit calls ``files.fault_points.hit(moment)``; ``arm`` makes it strike. A
fault is ``KIND:key=value,…``, several are separated by semicolons::

    kill:rank=1,step=7,at=save.write; nan:rank=0,step=9; delay:seconds=2,at=save.commit

Every rank counts for itself how often a fault has struck, in ``RUN/faults.jsonl`` and before it
strikes: a run that is started again with the same environment is not hit by the same fault again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.errors import ConfigError
from lmscale.files import fault_points
from lmscale.files.jsonl import append_durable_row, read_rows
from lmscale.files.locks import lock
from lmscale.files.run_files import FAULTS_FILE

logger = logging.getLogger(__name__)

VARIABLE = "LMSCALE_FAULTS"
_CHILD_VARIABLE = "LMSCALE_FAULTS_OF"  # what a rank's loader workers arm themselves with

STEP_MOMENTS = ("step.begin", "step.forward", "step.gradient", "step.update")
# Of a save: before the copy to host memory; before a file's first byte, before its fsync, and once
# it is durable; before the manifest, and once that is there. The last five in the writer's thread.
SAVE_MOMENTS = ("save.copy", "save.write", "save.fsync", "save.written")
SAVE_MOMENTS += ("save.commit", "save.committed")
READ_MOMENTS = ("read.shard", "read.remote")  # which know no step
MOMENTS = STEP_MOMENTS + SAVE_MOMENTS + READ_MOMENTS

# Kind → the moments at which it can strike, its default first.
KINDS: Mapping[str, tuple[str, ...]] = {
    "kill": MOMENTS,
    "hang": MOMENTS,
    "delay": MOMENTS,
    "nan": ("step.forward",),
    "flip-gradient": ("step.gradient",),
    "flip-weight": ("step.update",),
    "fail-fsync": ("save.fsync",),
    "full-disk": ("save.write", "save.commit"),
    "cut": ("save.written", "save.committed"),
    "drop-shard": ("read.shard",),
    "fail-read": ("read.remote",),
}
KEYS = ("rank", "step", "at", "times", "seconds", "bit", "id")
_LEAST = {"rank": 0, "step": 1, "times": 1, "bit": 0}  # of the keys with a whole number
# Counted from the highest: 0 is the sign, 1 the exponent's first (the number becomes huge), 9 the
# first behind fp32's and bf16's exponent (it changes by up to a half, without a sign).
DEFAULT_BITS = {"flip-gradient": 1, "flip-weight": 9}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault to strike on purpose: its kind, moment, rank and step."""

    kind: str
    at: str
    rank: int | None = None  # None: on every rank
    step: int | None = None  # counted from 1; at a save the checkpoint's; None: the first
    times: int = 1  # how often on a rank, over all starts of the run
    seconds: float = 1.0  # how long a delay is
    bit: int = 1
    id: str = ""  # tells two faults apart that are alike otherwise

    @property
    def text(self) -> str:
        """Name of the fault in ``faults.jsonl``."""
        given = {"rank": self.rank, "step": self.step, "id": self.id or None}
        parts = [f"at={self.at}", *(f"{k}={v}" for k, v in given.items() if v is not None)]
        return f"{self.kind}:{','.join(parts)}"


def read_faults(*, allowed: bool, world_size: int) -> tuple[Fault, ...]:
    """The faults of ``LMSCALE_FAULTS`` for a start of so many ranks. Raises ``ConfigError``."""
    text = os.environ.get(VARIABLE, "").strip()
    problems: list[str] = []
    if text and not allowed:
        problems.append(
            f"{VARIABLE} is set ({text[:80]!r}), and this run does not allow faults. Unset it; "
            "only a test sets run.allow_faults=true."
        )
    return parse_faults(text, world_size=world_size, problems=problems)


def parse_faults(
    text: str, *, world_size: int | None = None, problems: Sequence[str] = ()
) -> tuple[Fault, ...]:
    """A text's faults, for so many ranks (None: any). Raises ``ConfigError``, with ``problems``."""
    faults: list[Fault] = []
    problems = list(problems)
    for piece in filter(None, (part.strip() for part in text.split(";"))):
        wrong: list[str] = []
        fault = _parse_fault(piece, wrong)
        problems += [f"{VARIABLE}: {piece!r}: {problem}" for problem in wrong]
        faults += [] if wrong else [fault]
    for name, count in sorted(Counter(fault.text for fault in faults).items()):
        if count > 1:
            problems.append(
                f"{VARIABLE}: {name!r} is there {count} times: say times={count}, "
                "or give each an id of its own."
            )
    problems += [
        f"{VARIABLE}: {fault.text!r}: there is no rank {fault.rank} among {world_size}, which are "
        "counted from 0."
        for fault in faults
        if fault.rank is not None and world_size is not None and fault.rank >= world_size
    ]
    if problems:
        raise ConfigError(problems)
    return tuple(faults)


def _parse_fault(piece: str, problems: list[str]) -> Fault:
    """The fault of one ``piece``, for what it is worth where this adds ``problems``."""
    kind, _, rest = piece.partition(":")
    kind = kind.strip()
    moments = KINDS.get(kind, MOMENTS)
    if kind not in KINDS:
        problems.append(f"there is no fault {kind!r}. There are: {', '.join(KINDS)}.")
        rest = ""
    given: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key not in KEYS:
            problems.append(f"there is no key {key!r}. There are: {', '.join(KEYS)}.")
        elif not equals or not value:
            problems.append(f"{key} has no value; write {key}=VALUE.")
        elif key in given:
            problems.append(f"{key} is given twice.")
        else:
            given[key] = value
    at = given.get("at", moments[0])
    if at not in MOMENTS:
        problems.append(f"there is no moment {at!r}. There are: {', '.join(MOMENTS)}.")
    elif at not in moments:
        problems.append(f"a {kind} cannot strike at {at}, but at: {', '.join(moments)}.")
    elif at in READ_MOMENTS and "step" in given:
        problems.append(f"step is not known at {at}: leave it out.")
    values: dict[str, Any] = {"bit": DEFAULT_BITS.get(kind, 0)}
    for key, text in given.items():
        if key in _LEAST:
            values[key] = int(text) if text.isdecimal() else -1
            if values[key] < _LEAST[key]:
                problems.append(
                    f"{key} = {text!r} is not a whole number of at least {_LEAST[key]}."
                )
        elif key == "seconds":
            with suppress(ValueError):
                values[key] = float(text)
            if not 0 <= values.get(key, -1.0) < 1e6:
                problems.append(f"seconds = {text!r} is not a number of seconds.")
    if values["bit"] > 15:
        problems.append(f"bit = {values['bit']} is beyond the 16 highest: 0 is the sign.")
    return Fault(kind=kind, at=at, id=given.get("id", ""), **values)


def arm(faults: tuple[Fault, ...], *, rank: int, folder: Path) -> None:
    """Have what ``read_faults`` gave strike this rank of the run in ``folder``; or nothing."""
    disarm()
    if not faults:
        return
    texts = "; ".join(fault.text for fault in faults)
    logger.warning("faults will be injected into this run: %s", texts)
    # For the loader's workers, which are processes of their own.
    os.environ[_CHILD_VARIABLE] = json.dumps([rank, str(folder.absolute())])
    fault_points.armed = _Armed(faults, rank, folder)


def arm_child() -> None:
    """The same in a process that an armed rank has started."""
    if _CHILD_VARIABLE in os.environ:
        rank, folder = json.loads(os.environ[_CHILD_VARIABLE])
        fault_points.armed = _Armed(parse_faults(os.environ[VARIABLE]), rank, Path(folder))


def disarm() -> None:
    """Strike no more faults in this process."""
    fault_points.armed = None
    os.environ.pop(_CHILD_VARIABLE, None)


_ERRORS = {
    "fail-fsync": (errno.EIO, "an fsync failed"),
    "full-disk": (errno.ENOSPC, "the disk is full"),
    "drop-shard": (errno.ENOENT, "a shard is gone"),
    "fail-read": (errno.ECONNRESET, "a remote read failed"),
}
# The other kinds work on tensors, and strike in engine/tensor_faults.py.
_KINDS_HERE = ("kill", "hang", "delay", "cut", *_ERRORS)


class _Armed:
    """The faults of a process of one rank."""

    def __init__(self, faults: tuple[Fault, ...], rank: int, folder: Path) -> None:
        self._faults = [fault for fault in faults if fault.rank in (None, rank)]
        self._rank = rank
        self._path = folder / FAULTS_FILE
        self._spent: set[str] = set()
        self.step: int | None = None  # the one that the loop is at

    def hit(self, moment: str, step: int | None, path: Path | None) -> None:
        if moment == "step.begin":
            self.step = step
        for fault in self.strikes(_KINDS_HERE, moment, step):
            _strike(fault, path)

    def strikes(self, kinds: Container[str], moment: str, step: int | None) -> Iterator[Fault]:
        """The faults of these kinds that are due now, in order; each is counted as struck."""
        for fault in self._faults:
            is_due = fault.kind in kinds and fault.at == moment and fault.text not in self._spent
            if is_due and fault.step in (None, step) and self._count(fault, step):
                logger.warning("fault: %s", fault.text)
                yield fault

    def _count(self, fault: Fault, step: int | None) -> bool:
        """Write down that the fault strikes, unless it has struck often enough."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab") as file:
            lock(file.fileno())  # other ranks, threads and workers count here too
            mine = [self._rank, fault.text]
            rows = read_rows(self._path)
            num_fired = sum([row.get("rank"), row.get("fault")] == mine for row in rows)
            if num_fired + 1 >= fault.times:
                self._spent.add(fault.text)
            if num_fired >= fault.times:
                return False
            row = {"time": round(time.time(), 3), "fault": fault.text, "rank": self._rank}
            append_durable_row(self._path, {**row, "step": step, "pid": os.getpid()})
        return True


def _strike(fault: Fault, path: Path | None) -> None:
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.kind == "hang":
        threading.Event().wait()
    elif fault.kind == "delay":
        time.sleep(fault.seconds)
    elif fault.kind == "cut" and path is not None:
        if path.is_dir():  # which stands for its largest file
            path = max(path.iterdir(), key=lambda file: (file.stat().st_size, file.name))
        os.truncate(path, path.stat().st_size * 2 // 3)
    elif fault.kind in _ERRORS:
        number, text = _ERRORS[fault.kind]
        raise OSError(number, f"{text} on purpose", path and str(path))
