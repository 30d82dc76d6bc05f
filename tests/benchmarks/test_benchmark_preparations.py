"""The benchmark of preparations measures every objective that there is."""

from __future__ import annotations

import re
import sys

from lmscale.config.objective import OBJECTIVES


def test_it_prints_a_rate_of_every_objective(run_script):
    command = ("benchmarks/preparations.py", "--rounds", "1", "--rows", "2", "--length", "64")
    printed = run_script(sys.executable, *command)
    for name in OBJECTIVES.own:
        assert re.search(rf"^{name} +\d+\.\d$", printed, re.M), printed
