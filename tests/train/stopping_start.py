"""A start of `lmscale train` that SIGTERM reaches within a step, for test_train_owed.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tiny_run import ledger_of

STOP_STEP = 6


def start(folder: Path, number: int) -> None:
    """Go on with the run of FOLDER/c.yaml until SIGTERM comes within step ``STOP_STEP``."""
    from lmscale.config import load_config
    from lmscale.ranks.ranks import ranks_from_environment
    from lmscale.runs.stop import StopRequests
    from lmscale.train.session import train_run

    class Stopping(StopRequests):
        def requested(self, *, is_waiting: bool = False) -> str | None:
            if len(ledger_of(config.folder)) == STOP_STEP - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().requested(is_waiting=is_waiting)

    config = load_config(folder / "c.yaml")
    with Stopping(config.folder, watch_file=True) as stop:
        reason = train_run(config, ranks_from_environment(), stop, time.time())
    (folder / "reason").write_text(str(reason))
