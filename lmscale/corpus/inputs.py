"""Which raw files a source names, and how each is to be read. Pure but for looking at the disk."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lmscale.config.data import CorpusSourceConfig
from lmscale.errors import DataError

ENDINGS = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
}


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A file to read. Size in bytes and time of change in ns, so that a later run sees a change."""

    path: Path
    format: str
    bytes: int
    mtime_ns: int


def find_inputs(sources: Mapping[str, CorpusSourceConfig]) -> dict[str, tuple[RawFile, ...]]:
    """The raw files of every source, sorted by path, each once.

    Raises ``DataError`` with all sources' problems at once: a pattern that matches nothing, a
    folder, an ending that ``format: auto`` does not know.
    """
    problems: list[str] = []
    raw_files = {name: _find(name, source, problems) for name, source in sources.items()}
    if problems:
        raise DataError(problems)
    return raw_files


def _find(name: str, source: CorpusSourceConfig, problems: list[str]) -> tuple[RawFile, ...]:
    setting = f"corpus.sources.{name}"
    paths: set[str] = set()
    for pattern in source.inputs:
        expanded = os.path.expanduser(pattern)
        # "a[1].txt" is a pattern to glob, but if there is such a file, it is meant.
        matches = [expanded] if os.path.exists(expanded) else glob.glob(expanded, recursive=True)
        files = [match for match in matches if os.path.isfile(match)]
        if os.path.isdir(expanded):
            problems.append(
                f"{setting}.inputs: {pattern} is a folder; name its files, "
                f"for example {pattern.rstrip('/')}/**/*.jsonl."
            )
        elif not files:
            problems.append(
                f"{setting}.inputs: no file matches {pattern} (looked from {os.getcwd()})."
            )
        paths.update(files)
    raw_files = []
    for path in sorted(paths):
        form = source.format if source.format != "auto" else format_of(path)
        if form is None:
            problems.append(
                f"{setting}: {path}: unknown ending; known are {' '.join(ENDINGS)}. "
                f"Set {setting}.format."
            )
            continue
        status = os.stat(path)
        raw_files.append(
            RawFile(path=Path(path), format=form, bytes=status.st_size, mtime_ns=status.st_mtime_ns)
        )
    return tuple(raw_files)


def format_of(path: str) -> str | None:
    """The format by the file's ending, or None."""
    name = path.lower()
    return next((form for ending, form in ENDINGS.items() if name.endswith(ending)), None)
