"""Raw files → texts, one generator per format, in bounded memory.

A record that a reader cannot read goes to ``BadRecords``, which raises once more are broken than
``max_bad_records`` allows. An unreadable file is a ``DataError``.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lmscale.config.data import CorpusSourceConfig
from lmscale.corpus.text_files import missing_extra, read_lines, read_text
from lmscale.errors import DataError
from lmscale.files.tar_members import BoundedMember, describe_unsafe

# Of the text members of one sample in a tar, together: they are read whole, and a packed tar of a
# few kilobytes can hold any size.
MAX_SAMPLE_BYTES = 1 << 30
_TAR_DAMAGE = (tarfile.TarError, ValueError, EOFError, OSError, OverflowError, zlib.error)
Records = Iterator[tuple[int, str | None]]  # their numbers, and their texts but of broken ones
HANDFUL = 5  # how many broken records beyond the limit are named before the error is raised


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


def _find(source_name: str, source: CorpusSourceConfig, problems: list[str]) -> tuple[RawFile, ...]:
    setting = f"corpus.sources.{source_name}"
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
        name = path.lower()
        found = (form for ending, form in ENDINGS.items() if name.endswith(ending))
        form = next(found, None) if source.format == "auto" else source.format
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


class BadRecords:
    """Collects broken records of one source, or of a part of it; raises when there are too many."""

    def __init__(self, *, source: str, limit: int) -> None:
        self.source = source
        self.count = 0
        self.named: list[str] = []  # some of them, in words
        self._limit = limit

    def add(self, problem: str) -> None:
        self.count += 1
        if len(self.named) < min(self._limit + HANDFUL, 4 * HANDFUL):
            self.named.append(problem)
        if self.count >= self._limit + HANDFUL:
            self.check(more=True)

    def include(self, count: int, named: Sequence[str]) -> None:
        """Those of a part; ``named`` are some of them, in words."""
        self.count += count
        self.named += named[: 4 * HANDFUL - len(self.named)]

    def check(self, *, more: bool = False) -> None:
        """Raise ``DataError`` if the limit is passed. Called at the end of every file."""
        if self.count <= self._limit:
            return
        setting = f"corpus.sources.{self.source}.max_bad_records"
        stopped = ", and reading stopped there" if more else ""
        raise DataError(
            [
                *self.named,
                f"{self.count} broken records{stopped}; {setting} = {self._limit} allows "
                f"{self._limit}. Repair the files or raise {setting}; skipped records are counted.",
            ]
        )


def read_source(
    source: CorpusSourceConfig, files: tuple[RawFile, ...], bad: BadRecords
) -> Iterator[tuple[str, str]]:
    """(``FILE:RECORD``, text) of every document, in the order of files and records (from 1).

    Raises ``DataError``.
    """
    for file in files:
        for number, text in READERS[file.format](file.path, source, bad):
            if text is not None:
                yield f"{file.path.name}:{number}", text
        bad.check()


def _read_txt(path: Path, source: CorpusSourceConfig, bad: BadRecords) -> Records:
    yield 1, read_text(path, bad.source, source.encoding)


def _read_jsonl(path: Path, source: CorpusSourceConfig, bad: BadRecords) -> Records:
    for number, line in enumerate(read_lines(path, bad.source, source.encoding), start=1):
        if line.strip():
            yield number, _text_of_json(line, source.text_field, f"{path}:{number}", bad)


def _text_of_json(line: str | bytes, field: str, where: str, bad: BadRecords) -> str | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        # json's message repeats its own line and column, which are those within the record.
        bad.add(f"{where}: not JSON: {getattr(error, 'msg', error)}.")
        return None
    if not isinstance(record, dict):
        bad.add(f"{where}: expected a JSON object, found {type(record).__name__}.")
        return None
    if field not in record:
        keys = ", ".join(map(str, list(record)[:8])) or "none"
        bad.add(f"{where}: no key {field!r} (text_field); its keys: {keys}.")
        return None
    return _checked(record[field], field, where, bad)


def _checked(text: object, field: str, where: str, bad: BadRecords) -> str | None:
    """The text if it is one that UTF-8 can hold, or None and a bad record."""
    if not isinstance(text, str):
        bad.add(f"{where}: {field!r} holds {type(text).__name__}, not text.")
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        bad.add(f"{where}: {field!r} holds a lone surrogate, which is not Unicode text.")
        return None
    return text


def _read_parquet(path: Path, source: CorpusSourceConfig, bad: BadRecords) -> Records:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("reading Parquet", "pyarrow") from None
    field = source.text_field
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            schema = table.schema_arrow
            if field not in schema.names:
                raise DataError(
                    f"{path}: no column {field!r}; its columns: {', '.join(schema.names)}. "
                    f"Set corpus.sources.{bad.source}.text_field."
                )
            batches = table.iter_batches(batch_size=1024, columns=[field])
            values = chain.from_iterable(batch.column(0) for batch in batches)
            for number, value in enumerate(values, start=1):
                where = f"{path}: row {number}"
                try:
                    yield number, _checked(value.as_py(), field, where, bad)
                except UnicodeDecodeError as error:
                    bad.add(f"{where}: {field!r} is not UTF-8: {error.reason}.")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}.") from None


def _read_webdataset(path: Path, source: CorpusSourceConfig, bad: BadRecords) -> Records:
    # webdataset loads torch with itself, so it is imported only where a tar is read. Its own opener
    # runs a path that begins with "pipe:" as a command, and passes links and devices by.
    from webdataset.tariterators import group_by_keys

    try:
        with tarfile.open(path, mode="r|*", tarinfo=BoundedMember) as tar:
            for number, sample in enumerate(group_by_keys(_read_members(tar, path)), start=1):
                yield number, _text_of_sample(sample, source, path, bad)
    except _TAR_DAMAGE as error:
        raise DataError(f"{path}: damaged or not a webdataset tar: {error.args[0]}.") from None


def _read_members(tar: tarfile.TarFile, path: Path) -> Iterator[dict[str, Any]]:
    """The files that may hold text, as webdataset groups them. Raises ``DataError``."""
    from webdataset.tariterators import base_plus_ext

    sample, size = None, 0
    for member in tar:
        unsafe = describe_unsafe(member)
        if unsafe:
            raise DataError(
                f"{path}: {unsafe}. A webdataset tar holds plain files below its own place only: "
                "pack it again."
            )
        # As webdataset: names such as __index__/blocks.npy are about the tar, and are no samples.
        is_meta = re.match(r"__[^/]*__($|/)", member.name) is not None
        is_text = member.isreg() and member.name.lower().endswith((".txt", ".json"))
        key = base_plus_ext(member.name)[0] if is_text and not is_meta else None
        file = None if key is None else tar.extractfile(member)
        if file is not None:
            sample, size = key, member.size + (size if key == sample else 0)
            if size > MAX_SAMPLE_BYTES:
                raise DataError(
                    f"{path}: member {member.name!r}: the texts of this sample unpack to "
                    f"{size:,} bytes, and {MAX_SAMPLE_BYTES:,} is the most that is read. Cut it "
                    "into several samples."
                )
            yield {"fname": member.name, "data": file.read(), "__url__": str(path)}
        # Or a large tar would keep all of them.
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]


def _text_of_sample(
    sample: dict, source: CorpusSourceConfig, path: Path, bad: BadRecords
) -> str | None:
    """The text of the ``.txt`` member, else of the ``.json`` member's ``text_field``."""
    where = f"{path}: sample {sample['__key__']}"
    members = sorted(key for key in sample if not key.startswith("__"))
    member = min(members, key=lambda key: (not key.endswith("txt"), key))
    try:
        content = sample[member].decode(source.encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}.{member}: not {source.encoding} at byte {error.start:,}. "
            f"Set corpus.sources.{bad.source}.encoding."
        ) from None
    if member.endswith("txt"):
        return _checked(content, member, where, bad)
    return _text_of_json(content, source.text_field, f"{where}.{member}", bad)


READERS: dict[str, Callable[[Path, CorpusSourceConfig, BadRecords], Records]] = {
    "text": _read_txt,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "webdataset": _read_webdataset,
}
