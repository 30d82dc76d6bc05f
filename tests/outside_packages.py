"""Packages that add to lmscale by entry points, installed for a test's own commands alone.

As a script it is such a command, in a fork that had loaded lmscale before: ``PATHS ARGUMENTS…``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked_processes import run_process
from tiny_run import Ended, settings


@dataclass(frozen=True)
class Installed:
    """Where packages lie, for the commands that are to find them."""

    paths: str  # as in PYTHONPATH

    def run(self, *arguments: object) -> Ended:
        """``lmscale`` where the packages are installed."""
        # Workers of the loader are interpreters of their own, which read the variable.
        environment = {"PYTHONPATH": self.paths}
        words = (__file__, self.paths, *arguments)
        code, said = run_process("script", words, environment=environment)
        return Ended(code=code, output=said)

    def call(self, *arguments: object, **overrides: object) -> str:
        """What a command prints that goes well; ``overrides`` become ``--set``."""
        ended = self.run(*arguments, *settings(overrides))
        assert ended.code == 0, ended.output
        return ended.output

    def read(self, *arguments: object) -> Any:
        """The JSON that a command prints."""
        said = self.call(*arguments, "--json")
        return json.loads(said[said.index("{") :])


def install(site: Path, entries: Mapping[str, str], *folders: Path) -> Installed:
    """One package with these entry points, group → ``name = object``.

    ``site`` is an empty folder for its metadata; its modules lie in ``folders``.
    """
    metadata = site / "toys-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    groups = "".join(f"[{group}]\n{entry}\n" for group, entry in entries.items())
    (metadata / "entry_points.txt").write_text(groups)
    return Installed(os.pathsep.join(map(str, (site, *folders))))


def main(paths: str, *arguments: str) -> int:
    from lmscale.cli import main as command
    from lmscale.config import kinds

    sys.path[:0] = paths.split(os.pathsep)
    kinds._installed.cache_clear()  # of the process that this one was forked from
    sys.modules["__main__"] = command  # which fresh interpreters import anew
    sys.argv = [str(command.__file__), *arguments]
    return command.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
