"""Packages that add to lmscale by entry points, installed for a test's own interpreters alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from forked_processes import Server, run_process
from tiny_run import Ended, settings


@contextmanager
def installed(site: Path, entries: Mapping[str, str], *folders: Path) -> Iterator[Server]:
    """Where one package has these entry points, group → ``name = object``: for its commands.

    ``site`` is an empty folder for its metadata; its modules lie in ``folders``.
    """
    installed = site / "toys-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    groups = "".join(f"[{group}]\n{entry}\n" for group, entry in entries.items())
    (installed / "entry_points.txt").write_text(groups)
    with closing(Server({"PYTHONPATH": os.pathsep.join(map(str, (site, *folders)))})) as server:
        yield server


def run_lmscale(server: Server, *arguments: object) -> Ended:
    """``lmscale`` where the packages are installed."""
    code, said = run_process("command", arguments, server=server)
    return Ended(code=code, output=said)


def call_lmscale(server: Server, *arguments: object, **overrides: object) -> str:
    """What a command prints that goes well; ``overrides`` become ``--set``."""
    ended = run_lmscale(server, *arguments, *settings(overrides))
    assert ended.code == 0, ended.output
    return ended.output


def read_lmscale(server: Server, *arguments: object) -> Any:
    """The JSON that a command prints."""
    said = call_lmscale(server, *arguments, "--json")
    return json.loads(said[said.index("{") :])
