"""What every Python of a test's jobs does before anything else: it imports this, from PYTHONPATH.

It may be held where it begins (hold.py), and a rank's steps slowed down (pace.py); and where the
test allows it, a process that would now load torch, or much of lmscale, stands for a fork of one
that has loaded it already (proxy.py).
"""

from __future__ import annotations

import os
import sys

LOADING_MUCH = ("lmscale", "lmscale.cli.main")
LOADING_MUCH += ("launcher.preflight", "launcher.preflight.node_probe")
SCRIPTS = ("/toy_trainer.py", "/gpu_checks.py", "/odd_checks.py", "/mailbox_rank.py")

if "TEST_HOLD" in os.environ:
    from hold import wait_if_held

    wait_if_held()
if "TEST_STEP_PAUSE" in os.environ:
    from pace import slow_when_loaded

    slow_when_loaded()
if "TEST_FORK_SOCKET" in os.environ:
    words = [word for word in sys.orig_argv[1:] if word != "-u"]
    is_module = words[:2] in [["-m", name] for name in LOADING_MUCH]
    if is_module or words[:1] and words[0].endswith(SCRIPTS):
        from proxy import stand_for_a_fork

        stand_for_a_fork(os.environ["TEST_FORK_SOCKET"], words[is_module:])
