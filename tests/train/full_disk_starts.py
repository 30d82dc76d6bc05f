"""``DISK CONFIG``: two starts of a run on a disk that is too small; then it grows, and a third.

Prints what each has ended with, what it has said, and what is on the disk then.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from forked_starts import fork, run_command
from tiny_run import committed_steps

disk, config = map(Path, sys.argv[1:])
log = config.with_name("said.txt")
saw = []
for number in range(3):
    if number == 2:
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    child = fork(lambda: run_command(["train", str(config)]), log=log, environment={})
    _, status = os.waitpid(child, 0)
    saw.append(
        {
            "code": os.waitstatus_to_exitcode(status),
            "output": log.read_text(),
            "free": shutil.disk_usage(disk).free,
            "committed": committed_steps(disk / "run"),
            "folders": sorted(path.name for path in (disk / "run/checkpoints").glob("step-*")),
        }
    )
print(json.dumps(saw))
