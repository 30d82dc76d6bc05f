"""The raw files that a configuration names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lmscale.config.corpus import PLAIN, CorpusConfig, CorpusSourceConfig
from lmscale.corpus.text_files import PACKINGS
from lmscale.errors import DataError
from lmscale.files.locations import match_files
from lmscale.files.redact import printable_name

ENDINGS = {
    **dict.fromkeys((".txt", ".md", ".rst"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".tar": "webdataset",
}


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A file to read. Size in bytes and time of change in ns, so that a later run sees a change."""

    path: Path
    format: str
    bytes: int
    mtime_ns: int
    rules: CorpusSourceConfig
    """The source's settings, with those of the input that names the file."""
    own: tuple[tuple[str, object], ...] = ()
    """The latter."""

    @property
    def shown(self) -> str:
        return printable_name(str(self.path))

    @property
    def has_markup(self) -> bool:
        """Which is removed of its texts."""
        return self.format == "html" or bool(self.rules.strip_html)


def find_inputs(config: CorpusConfig) -> dict[str, tuple[RawFile, ...]]:
    """The raw files of every source, sorted by path, each once.

    Raises ``DataError`` with all sources' problems at once: a pattern that matches nothing, a
    folder, an ending that ``format: auto`` does not know.
    """
    problems: list[str] = []
    raw_files = {name: _find(config, name, problems) for name in config.sources}
    if problems:
        raise DataError(problems)
    return raw_files


def _find(config: CorpusConfig, name: str, problems: list[str]) -> tuple[RawFile, ...]:
    source, setting = config.sources[name], f"corpus.sources.{name}"
    source = source.model_copy(update={"strip_html": config.strips(name)})
    rules: dict[str, CorpusSourceConfig] = {}
    special: dict[str, tuple[tuple[str, object], ...]] = {}
    for number, each in enumerate(source.inputs):
        own = source.model_copy(update=each.settings)
        for path in _match(each.files, setting, problems):
            special[path] = tuple(sorted(each.settings.items()))
            if rules.setdefault(path, own) != own:
                problems.append(
                    f"{setting}.inputs: {printable_name(path)} is also of inputs[{number}] "
                    f"({each.files}), which has other settings: let one pattern name it."
                )
    raw_files: list[RawFile] = []
    unknown: dict[str, list[str]] = {}
    odd: list[str] = []
    without_fields: list[str] = []
    for path, own in sorted(rules.items()):
        if not os.path.isfile(path):
            odd.append(path)
            continue
        form = _format_of(path) if own.format == "auto" else own.format
        if form is None:
            unknown.setdefault(os.path.splitext(path)[1] or "none", []).append(path)
            continue
        if form in PLAIN and own.fields_beside:
            without_fields.append(path)
        status = os.stat(path)
        raw_files.append(
            RawFile(
                path=Path(path),
                format=form,
                bytes=status.st_size,
                mtime_ns=status.st_mtime_ns,
                rules=own,
                own=special[path],
            )
        )
    if odd:
        problems.append(f"{setting}: no file: {_name(odd)}: a link to nothing, a pipe or a device.")
    problems += [
        f"{setting}: {_name(paths)}: unknown ending ({ending}); known are {' '.join(ENDINGS)}, "
        f"also packed ({' '.join(PACKINGS)}). Set {setting}.format, or that of the input: "
        "{files: PATTERN, format: text}."
        for ending, paths in unknown.items()
    ]
    if without_fields:
        problems.append(
            f"{setting}: {_name(without_fields)}: text has no fields, and {setting} names "
            f"{' and '.join(source.fields_beside)}: give JSON lines or Parquet."
        )
    return tuple(raw_files)


def _match(pattern: str, setting: str, problems: list[str]) -> list[str]:
    """The files that a pattern names."""
    files = [match for match in match_files(pattern) if not os.path.isdir(match)]
    if os.path.isdir(os.path.expanduser(pattern)):
        problems.append(
            f"{setting}.inputs: {pattern} is a folder; name its files, "
            f"for example {pattern.rstrip('/')}/**/*.jsonl."
        )
    elif not files:
        problems.append(f"{setting}.inputs: no file matches {pattern} (looked from {os.getcwd()}).")
    return files


def _name(paths: list[str]) -> str:
    """Of many files the first ones, and how many there are."""
    more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
    return f"{', '.join(map(printable_name, paths[:3]))}{more}"


def _format_of(path: str) -> str | None:
    stem, ending = os.path.splitext(path.lower())
    return ENDINGS.get(os.path.splitext(stem)[1] if ending in PACKINGS else ending)
