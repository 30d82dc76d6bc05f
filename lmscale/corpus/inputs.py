"""The raw files that a configuration names."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lmscale.config.data import CorpusSourceConfig
from lmscale.corpus.text_files import PACKINGS
from lmscale.errors import DataError
from lmscale.files.redact import printable_name

ENDINGS = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet", ".tar": "webdataset"}


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A file to read. Size in bytes and time of change in ns, so that a later run sees a change."""

    path: Path
    format: str
    bytes: int
    mtime_ns: int

    @property
    def shown(self) -> str:
        return printable_name(str(self.path))


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


def _find(source_name: str, source: CorpusSourceConfig, problems: list[str]) -> tuple[RawFile, ...]:
    setting = f"corpus.sources.{source_name}"
    paths: set[str] = set()
    for pattern in source.inputs:
        expanded = os.path.expanduser(pattern)
        # "a[1].txt" is a pattern to glob, but if there is such a file, it is meant.
        matches = [expanded] if os.path.exists(expanded) else glob.glob(expanded, recursive=True)
        files = [match for match in matches if not os.path.isdir(match)]
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
        shown = printable_name(path)
        if not os.path.isfile(path):
            problems.append(
                f"{setting}: {shown} is no file: a link to nothing, a pipe or a device."
            )
            continue
        form = _format_of(path) if source.format == "auto" else source.format
        if form is None:
            problems.append(
                f"{setting}: {shown}: unknown ending; known are {' '.join(ENDINGS)}, also packed "
                f"({' '.join(PACKINGS)}). Set {setting}.format."
            )
            continue
        if form == "text" and source.fields_beside:
            problems.append(
                f"{setting}: {shown}: text has no fields, and {setting} names "
                f"{' and '.join(source.fields_beside)}: give JSON lines or Parquet."
            )
        status = os.stat(path)
        raw_files.append(
            RawFile(path=Path(path), format=form, bytes=status.st_size, mtime_ns=status.st_mtime_ns)
        )
    return tuple(raw_files)


def _format_of(path: str) -> str | None:
    stem, ending = os.path.splitext(path.lower())
    return ENDINGS.get(os.path.splitext(stem)[1] if ending in PACKINGS else ending)
