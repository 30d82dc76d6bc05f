"""Lets a test keep some processes of a job where they begin, with nothing loaded yet.

A process waits as long as the file $TEST_HOLD is there and its words are in the command.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def wait_if_held() -> None:
    while _is_held(" ".join(sys.orig_argv)):
        time.sleep(0.05)


def _is_held(command: str) -> bool:
    try:
        words = Path(os.environ["TEST_HOLD"]).read_text()
    except OSError:  # not there any more
        return False
    return bool(words) and words in command
