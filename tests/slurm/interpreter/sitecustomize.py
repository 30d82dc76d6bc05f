"""What every Python of a test's jobs does before anything else: it imports this, from PYTHONPATH.

A rank's steps may be slowed down (pace.py); and where the test allows it, a process that would now
load torch stands for a fork of one that has loaded it already (proxy.py).
"""

from __future__ import annotations

import os
import sys

LOADING_TORCH = ("lmscale.cli.main", "launcher.preflight.node_probe")

if "TEST_STEP_PAUSE" in os.environ:
    from pace import slow_when_loaded

    slow_when_loaded()
if "TEST_FORK_SOCKET" in os.environ and sys.orig_argv[1:3] in [["-m", m] for m in LOADING_TORCH]:
    from proxy import stand_for_a_fork

    stand_for_a_fork(os.environ["TEST_FORK_SOCKET"], sys.orig_argv[2:])
