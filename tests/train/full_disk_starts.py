"""``DISK CONFIG``: two starts of a run on a disk that is too small; then it grows, and a third.

Prints what each has ended with, what it has said, and what is on the disk then.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tiny_run import committed_steps, run_lmscale

disk, config = map(Path, sys.argv[1:])
saw = []
for number in range(3):
    if number == 2:
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    ended = run_lmscale("train", config)
    saw.append(
        {
            "code": ended.code,
            "output": ended.output,
            "free": shutil.disk_usage(disk).free,
            "committed": committed_steps(disk / "run"),
            "folders": sorted(path.name for path in (disk / "run/checkpoints").glob("step-*")),
        }
    )
print(json.dumps(saw))
