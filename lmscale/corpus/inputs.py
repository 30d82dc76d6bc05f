"""The raw files that a configuration names."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lmscale.config.corpus import PLAIN, CorpusConfig, CorpusSourceConfig
from lmscale.corpus.text_files import PACKINGS
from lmscale.errors import DataError, TransientError
from lmscale.files.found import (
    FoundFile,
    Match,
    ending_of,
    find_named,
    name_some,
    show_location,
    stem_of,
)

TABLES = (".csv", ".tsv", ".xlsx")  # of which each program reads something else
ENDINGS = {
    **dict.fromkeys((".txt", ".md", ".rst"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".tar": "webdataset",
}


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RawFile(FoundFile):
    """A file to read, and how."""

    format: str
    rules: CorpusSourceConfig
    """The source's settings, with those of the input that names the file."""
    own: tuple[tuple[str, object], ...] = ()
    """The latter."""

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
    unreached: list[str] = []
    raw_files = {name: _find(config, name, problems, unreached) for name in config.sources}
    if problems:
        raise DataError([*problems, *unreached])
    if unreached:
        raise TransientError(unreached)
    return raw_files


def _describe_odd(matches: Mapping[int, Match], setting: str) -> Iterator[str]:
    """What is named and is no file."""
    folders = [place for match in matches.values() for place in _lost_folders(match)]
    if folders:
        what = "is a folder; name its" if len(folders) == 1 else "are folders; name their"
        yield (
            f"{setting}.inputs: {name_some(folders)} {what} files, for example "
            f"{show_location(min(folders).rstrip('/'))}/**/*.jsonl."
        )
    if odd := [place for match in matches.values() for place in match.odd]:
        yield f"{setting}: no file: {name_some(odd)}: a link to nothing, a pipe or a device."


def _lost_folders(match: Match) -> list[str]:
    """Folders whose files a pattern does not name, though it names the folder: alone, or by an
    ending, as those that Spark writes (``x.parquet/part-0.parquet``).
    """
    is_alone = not match.files
    lost = [place for place in match.folders if is_alone or format_of(place)]
    inside = {parent for file in match.files for parent in _parents(file.location)}
    return [place for place in lost if place.rstrip("/") not in inside]


def _parents(location: str) -> Iterator[str]:
    while "/" in location:
        location = location.rpartition("/")[0]
        yield location


def _find(
    config: CorpusConfig, name: str, problems: list[str], unreached: list[str]
) -> tuple[RawFile, ...]:
    source, setting = config.sources[name], f"corpus.sources.{name}"
    source = source.model_copy(update={"strip_html": config.strips(name)})
    found: dict[str, RawFile] = {}
    unknown: dict[str, list[str]] = {}
    without_fields: list[str] = []
    patterns = [each.files for each in source.inputs]
    named = find_named(patterns, f"{setting}.inputs", retries=config.retries)
    problems += named.problems
    unreached += named.unreached
    problems += _describe_odd(named.matches, setting)
    # A file that is named by its path first: so it is read, whatever pattern names it, too.
    alone = {number for number, match in named.matches.items() if _is_path(patterns[number], match)}
    paths = {file.location for number in alone for file in named.matches[number].files}
    for number in sorted(named.matches, key=lambda number: (number not in alone, number)):
        each, match = source.inputs[number], named.matches[number]
        own = source.model_copy(update=each.settings)
        for file in match.files:
            place = file.location
            if place in found:
                if found[place].rules != own and (number in alone or place not in paths):
                    problems.append(
                        f"{setting}.inputs: {file.shown} is also of inputs[{number}] "
                        f"({each.files}), which has other settings: let one pattern name it."
                    )
                continue
            form = format_of(place) if own.format == "auto" else own.format
            if form is None:
                unknown.setdefault(file.ending or "none", []).append(place)
                continue
            if form in PLAIN and own.fields_beside:
                without_fields.append(place)
            special = tuple(sorted(each.settings.items()))
            found[place] = RawFile(**vars(file), format=form, rules=own, own=special)
    problems += [
        f"{setting}: {name_some(paths)}: unknown ending ({ending}); known are {' '.join(ENDINGS)}, "
        f"also packed ({' '.join(PACKINGS)}). {_advise(ending, setting)}"
        for ending, paths in unknown.items()
    ]
    if without_fields:
        problems.append(
            f"{setting}: {name_some(without_fields)}: text has no fields, and {setting} names "
            f"{' and '.join(source.fields_beside)}: give JSON lines or Parquet."
        )
    _warn_of_little_known(found, setting)
    return tuple(found[place] for place in sorted(found))


def _advise(ending: str, setting: str) -> str:
    """What to do with files of an ending that is not known."""
    if ending in TABLES:
        return (
            "Make Parquet or JSON lines of a table, whose columns are read by name: in Python "
            "pandas.read_csv(FILE).to_parquet(NEW)."
        )
    return f"Set {setting}.format, or that of the input: {{files: PATTERN, format: text}}."


def _warn_of_little_known(found: Mapping[str, RawFile], setting: str) -> None:
    """Of files elsewhere whose server says too little to see that they change or are cut."""
    if unversioned := [place for place, file in found.items() if not file.version]:
        logger.warning(
            "%s: %s: told with neither ETag nor time of change: a change that keeps the size will "
            "not be seen.",
            setting,
            name_some(unversioned),
        )
    if unsized := [place for place, file in found.items() if file.is_web and not file.bytes]:
        logger.warning(
            "%s: %s: empty, or told without its size: text that is cut off at the end will not be "
            "missed, unless the file is packed.",
            setting,
            name_some(unsized),
        )


def _is_path(pattern: str, match: Match) -> bool:
    """Whether it is the path or URL of one file."""
    return [file.location for file in match.files] == [os.path.expanduser(pattern)]


def format_of(location: str) -> str | None:
    """The format that a file's ending stands for; None for an ending that is not known."""
    ending = ending_of(location)
    return ENDINGS.get(ending_of(stem_of(location)) if ending in PACKINGS else ending)
