"""Kills a run at each of the changes that it makes to the disk while it is rewound, and resumes it.

    python tests/train/rewind_kills.py DATA FOLDER MOMENT…

In the run some samples are bad: the gradient of a batch with one of them is infinite. So the guard
rewinds it, and would do so again in any attempt that met them. For every MOMENT (the n-th change
after the divergence was noticed; 0: no kill) FOLDER/MOMENT is the folder of a run that was killed
there and then finished. One process loads everything and forks the attempts. Linux only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

from fork_server import load_everything
from forked_ranks import in_a_fork
from kill_points import CHANGES
from tiny_run import tiny_config

STEPS, JUMPED_STEPS = 8, 2
BAD = range(60, 84)  # the samples of steps 6 and 7; at 6 a checkpoint is saved
AT_KILL = "at_kill.json"  # how many rewinds were recorded then


def config_of(data: Path, folder: Path):
    return tiny_config(
        data,
        folder,
        {
            "train.steps": STEPS,
            "batch.micro_windows": 6,
            "checkpoint.every_steps": 2,
            "checkpoint.keep_last": 9,
            # So that a moment is the same one in every run.
            "checkpoint.asynchronous": False,
            "watch.heartbeat_seconds": 0,
            "guard.max_nonfinite_steps": 2,
            "guard.jump_steps": JUMPED_STEPS,
        },
    )


def main(data: str, folder: str, *moments: str) -> None:
    load_everything()
    from lmscale.files.jsonl import read_rows

    bad = read_bad(Path(data))
    for moment in map(int, moments):
        run = Path(folder) / str(moment)
        work = partial(attempt, Path(data), run, bad)
        code = in_a_fork(partial(work, kill_at=moment))
        assert code == (-signal.SIGKILL if moment else 0), f"moment {moment}: ended with {code}"
        if moment:
            rows = read_rows(run / "rewinds.jsonl")
            (run / AT_KILL).write_text(json.dumps(len(rows)))
            code = in_a_fork(partial(work, kill_at=0))
            assert code == 0, f"moment {moment}: resumed, it ended with {code}"


def read_bad(data: Path) -> frozenset[bytes]:
    from lmscale.stream.stream import open_stream

    with open_stream(config_of(data, data / "unused").stream, seed=1) as stream:
        tokens = stream.read_rows(0, 200).tokens
    rows = [row.tobytes() for row in tokens]
    assert len(set(rows)) == len(rows)
    return frozenset(rows[n] for n in BAD)


def attempt(data: Path, folder: Path, bad: frozenset[bytes], *, kill_at: int) -> None:
    """Train, as the command does, from where the run is; die before its ``kill_at``-th change."""
    from lmscale.cli.train import run_training
    from lmscale.guard.guard import RewindRequest
    from lmscale.train import assemble

    build = assemble.build_run_engine

    def build_with_bad_samples(*arguments, **settings):
        engine = build(*arguments, **settings)
        _spoil(engine.module, bad)
        return engine

    assemble.build_run_engine = build_with_bad_samples
    if kill_at:
        noticed = RewindRequest.__init__

        def notice(self, divergence) -> None:
            noticed(self, divergence)
            sys.addaudithook(_Countdown(kill_at, folder))

        RewindRequest.__init__ = notice
    assert run_training(config_of(data, folder)) is None


def _spoil(module, bad: frozenset[bytes]) -> None:
    """Make the gradient of a batch with a bad sample infinite."""
    import torch

    is_bad = [False]

    def look(_, inputs, batch) -> None:
        is_bad[0] = any(row.tobytes() in bad for row in batch["tokens"].numpy())

    def spoil(gradient: torch.Tensor) -> torch.Tensor | None:
        return torch.full_like(gradient, torch.inf) if is_bad[0] else None

    module.register_forward_pre_hook(look, with_kwargs=True)
    next(module.parameters()).register_hook(spoil)


class _Countdown:
    """Kills this process before the so-and-so-many-th change in the run's folder."""

    def __init__(self, left: int, folder: Path) -> None:
        self._left, self._folder = left, str(folder)

    def __call__(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY
        if (writes or event in CHANGES) and str(arguments[0]).startswith(self._folder):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
