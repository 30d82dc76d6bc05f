"""What the ranks of test_train_guarded.py do: runs that diverge for one reason or another."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLIP_AFTER = 5  # step: compared before the updates of 4 and 8, and before every save
WRONG = 1  # the rank
NAN_AT = (6, 7)  # steps
REFUSED = 4  # the step of a checkpoint that a rank may not look at
SETTINGS = {
    "run.allow_faults": True,
    "train.steps": 10,
    "engine.zero_stage": 0,
    "checkpoint.every_steps": 2,
    "checkpoint.keep_last": 9,
    "checkpoint.asynchronous": False,
    "watch.heartbeat_seconds": 0,
    "guard.max_nonfinite_steps": 2,
    "guard.jump_steps": 2,
    "guard.compare_every_steps": 4,
}
NAN = "; ".join(f"nan:rank=0,step={step}" for step in NAN_AT)
FLIP = f"flip-weight:rank={WRONG},step={FLIP_AFTER},bit=1"
# The run, the faults, other settings. One after the other, each on two ranks.
STARTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("flipped", FLIP, {"checkpoint.every_steps": 100}),
    ("flipped before a save", FLIP, {}),
    ("flipped before a save", FLIP, {}),
    *((f"bad samples {stage}", NAN, {"engine.zero_stage": stage}) for stage in range(4)),
    ("no way back", NAN, {"guard.jump_steps": 7, "checkpoint.every_steps": 6}),
    ("refused", NAN, {}),
    ("damaged since", NAN, {}),
    ("not compared", FLIP, {"guard.compare_every_steps": 0, "guard.on_divergence": "stop"}),
)


def start(folder: Path, number: int) -> None:
    """What each rank of a start does; how it ended goes to ended-NUMBER-RANK.json."""
    from tiny_run import tiny_config

    from lmscale.cli.train import run_training
    from lmscale.errors import LmscaleError

    name, faults, overrides = STARTS[number]
    os.environ["LMSCALE_FAULTS"] = faults
    BREAKS.get(name, lambda: None)()
    data = Path((folder / "data.txt").read_text())
    ended: dict[str, Any] = {"class": None, "code": 0, "said": ""}
    try:
        run_training(tiny_config(data, folder / name, SETTINGS | overrides))
    except LmscaleError as error:
        said = {"class": type(error).__name__, "code": error.exit_code, "said": str(error)}
        ended |= said | {"summary": error.summary}
    (folder / f"ended-{number}-{os.environ['RANK']}.json").write_text(json.dumps(ended))


def refuse() -> None:
    """One rank may not read the manifest that the guard wants to go back to."""
    from lmscale.checkpoint import LocalPlace

    read = LocalPlace.read_manifest

    def refused(self: LocalPlace, step: int) -> str:
        if step == REFUSED and os.environ["RANK"] == str(WRONG):
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(self, step)

    LocalPlace.read_manifest = refused


def damage() -> None:
    """What the guard goes back to turns out wrong once it is loaded."""
    from lmscale.train import assemble

    load = assemble._load

    def loaded(found: Any, engine: Any, *more: Any) -> None:
        load(found, engine, *more)
        if found.manifest.step == 4:
            raise assemble.LoadedWrongError(["its loss is another one"], engine)

    assemble._load = loaded


BREAKS: dict[str, Callable[[], None]] = {"refused": refuse, "damaged since": damage}
