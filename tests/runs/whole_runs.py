"""A run's folder with every file that lmscale reads back, each with every kind of its rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lmscale.files.reading import seal

NOW = 1_795_301_723.0
_SECONDS = {"step": 5.0, "start": 2.0}
_BEAT = {"rank": 0, "world_size": 1, "host": "n1", "pid": 7, "attempt": "4.0", "beat": 9}
_BEAT |= {"step": 12, "phase": "data", "place": 1, "ticks": 0, "phase_seconds": 1.5}
_BEAT |= {"still_seconds": 1.0, "is_starting": False, "forward_seconds": 0.5, "time": NOW}
_COMMIT = {"event": "commit", "step": 10, "n": 80, "folder": "checkpoints/step-000000010"}
_COMMIT |= {"sha256": "ab", "bytes": 9, "reason": "regular", "time": NOW, "attempt": 1}
_PASSED = {"step": 5, "checkpoint": "step-000000005", "why": ["is damaged"]}


def _attempt(event: str, **more: Any) -> dict[str, Any]:
    return {"event": event, "time": NOW + more.get("step", 0), "attempt": 1, **more}


def _start(number: int) -> dict[str, Any]:
    row = {"job": "4", "restart": number - 1, "first_step": 0, "host": "n1", "world_size": 1}
    return _attempt("start", **row, zero_stage=1) | {"attempt": number}


ROWS: dict[str, list[dict[str, Any]]] = {
    "attempts.jsonl": [
        _start(1),
        _attempt("progress", step=4, step_seconds=5.0, seconds=_SECONDS, skipped_steps=1),
        _attempt("rewind", step=6, step_seconds=5.0, seconds=_SECONDS, to_step=2),
        _attempt("end", step=12, step_seconds=5.0, seconds=_SECONDS, reason="NoSpaceError"),
        _start(2),
        _attempt("progress", step=12, step_seconds=5.0, seconds=_SECONDS) | {"attempt": 2},
    ],
    "ledger.jsonl": [
        {"step": step, "first_n": 8 * step, "samples": 8, "tokens": 9, "digest": f"{step:016x}"}
        for step in range(12)
    ],
    "metrics.jsonl": [
        {"step": 10, "time": NOW, "train/loss": 3.5, "train/tokens": 90, "speed/step_seconds": 1.0},
        {"step": 12, "time": NOW, "train/loss": None, "guard/spike_steps": 2.0},
        {"step": 12, "time": NOW, "evaluation/heldout/loss": 3.25},
    ],
    "tasks.jsonl": [
        {"step": 12, "time": NOW, "weights": "trained", "limit": 9}
        | {"figures": {"tasks/cloze/acc": 0.5}}
    ],
    "commits.jsonl": [_COMMIT, {"event": "remove", "step": 5, "time": NOW}],
    "watch.jsonl": [
        {"event": "end", "time": NOW, "by": 0, "attempt": "4.0", "text": "rank 1", "ranks": [1]},
        {"event": "hang", "time": NOW, "by": 0, "attempt": "4.0", "text": "rank 0", "ranks": [0]},
    ],
    "resumes.jsonl": [
        {"time": NOW, "step": 4, "checkpoint": "step-000000004", "passed_over": [_PASSED]}
    ],
    "rewinds.jsonl": [
        {"number": 1, "at_step": 6, "to_step": 2, "to_n": 16, "jump_from_n": 40}
        | {"jump_samples": 8, "why": "a spike", "time": NOW}
    ],
    "faults.jsonl": [{"time": NOW, "fault": "kill:at=step.begin", "rank": 0, "step": 3, "pid": 7}],
    "slurm/submissions.jsonl": [
        {"time": NOW, "submission": "20261122-011900-train", "job": "4", "jobs": ["4"]}
        | {"kind": "train", "limit_seconds": 60.0, "signal_seconds": 9.0, "nodes": [1, 1]}
    ],
    "slurm/events.jsonl": [
        {"event": "start", "time": NOW, "submission": "s", "job": "4", "restart": 0}
        | {"step": -1, "nodes": "n1"},
        {"event": "exclude", "time": NOW, "submission": "s", "job": "4", "restart": 0}
        | {"nodes": "n2", "reason": "slow"},
        {"event": "end", "time": NOW, "submission": "s", "job": "4", "restart": 0}
        | {"step": 12, "code": 75, "reason": "SIGUSR1", "action": "requeue"},
    ],
}
OBJECTS: dict[str, dict[str, Any]] = {
    "heartbeats/rank-00000.json": _BEAT,
    "heartbeats/request.json": {"number": 1, "start": "n1:7", "kind": "hang"}
    | {"silent": [], "text": "rank 0"},
    "lease.json": {"attempt": "4.0", "job": "4", "restart": 0, "hosts": ["n1"], "rank0": "n1:7"}
    | {"token": "9f", "time": NOW, "ended": None, "submission": "s"},
    "stream.json": {"state": {}, "shards": {"a": "/shards/a"}, "undone": {"step-5": "cd"}},
}
TEXTS = {
    "config.yaml": "run: {name: first}\ntrain: {steps: 1000}\n",
    "slurm/cancel": "3\n",
    "slurm/job-4.out": "error: no room\n",
    "logs/rank-00000.log": "2026-11-22T01:19:00.123 INFO lmscale: began\n",
}
FILES = (*ROWS, *OBJECTS)


def build_run(folder: Path) -> Path:
    """Write the whole folder, of a run that has been silent since 1970."""
    for name, rows in ROWS.items():
        write(folder / name, "".join(json.dumps(row) + "\n" for row in rows).encode())
    for name, value in OBJECTS.items():
        write(folder / name, seal(value) if name == "stream.json" else json.dumps(value).encode())
    for name, text in TEXTS.items():
        write(folder / name, text.encode())
    return folder


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (60, 60))
