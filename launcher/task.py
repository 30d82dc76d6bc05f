"""What srun starts for a task of a data job: ``lmscale`` in the folder that it was launched from.

    srun … PYTHON -m launcher.task FOLDER corpus build CONFIG --task 3/8

The corpus' inputs are relative to that folder, but Python must not start in it: ``python -m`` puts
the current folder first on its path, and a clone's code would run in place of the frozen one.
"""

from __future__ import annotations

import os
import runpy
import sys


def main() -> None:
    folder, arguments = sys.argv[1], sys.argv[2:]
    try:
        os.chdir(folder)
    except OSError as error:
        print(f"error: this node cannot enter the folder of the launch: {error}.", file=sys.stderr)
        sys.exit(1)  # another node may see it
    sys.argv = ["lmscale", *arguments]
    runpy.run_module("lmscale.cli.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
