"""A part of a source: a run of raw files, cleaned by one process into a folder.

<key>/{train,heldout}/documents-00000.jsonl    the documents, before duplicates of other parts go
<key>/index.npy                                digests of the texts, to find duplicates by
<key>/part.json                                counts of documents read, dropped and written
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.broken import Broken
from lmscale.corpus.cleaner import NAMED_FILES, Cleaner
from lmscale.corpus.documents import (
    AGAIN,
    SPLITS,
    DocumentWriter,
    Splits,
    check_documents,
    hash_documents,
)
from lmscale.corpus.duplicates import write_index
from lmscale.corpus.inputs import RawFile
from lmscale.errors import DataError
from lmscale.files.atomic import fsync_folder, have_sizes, write_bytes, writing
from lmscale.files.reading import open_plain, read_plain, seal, unseal
from lmscale.files.strangers import checked
from lmscale.tasks.target import Unit


@dataclass(frozen=True, kw_only=True)
class Part(Unit):
    """A run of raw files to clean; crosses to a worker process."""

    source: str
    config: CorpusConfig
    files: tuple[RawFile, ...]
    folder: Path  # of the finished part, named by a hash of the files and of the cleaning's rules

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def is_done(self) -> bool:
        return load_part(self.folder) is not None

    def do(self) -> None:
        """Clean the part's files. If another process was faster, its part stays."""
        parts = self.folder.parent
        with writing(f"the documents of source {self.source}", parts):
            # Random, because a second copy of the task may run on another node.
            work = parts / f".{self.folder.name[:16]}.{secrets.token_hex(4)}"
            work.mkdir(parents=True)
            try:
                record = asdict(_write_part(self, work)) | {"index": _hash_index(work)}
                write_bytes(work / "part.json", seal(record))
                try:
                    os.rename(work, self.folder)
                except OSError:
                    if not self.is_done():
                        _fill(self.folder, work)
                fsync_folder(parts)
            finally:
                shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """A part's counts and files. Its duplicates are texts that came twice within the part."""

    documents_read: int
    dropped: dict[str, int]
    cut: dict[str, int]
    line_ends: int
    passed_over: dict[str, int]
    broken: tuple[Broken, ...]  # the first broken records
    files_without_text: int
    without_text: tuple[str, ...]  # the first of these files
    splits: Splits
    markup_chars: int = 0
    normalized: int = 0


_RECORD = TypeAdapter(PartRecord)
logger = logging.getLogger(__name__)


def _fill(part: Path, work: Path) -> None:
    """Put files into a part that has lost some. No file is removed: a finisher may be at work."""
    for path in sorted(work.rglob("*")):
        target = part / path.relative_to(work)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.name != "part.json":
            os.replace(path, target)
    os.replace(work / "part.json", part / "part.json")


def load_part(folder: Path, *, deep: bool = False) -> PartRecord | None:
    """A finished part's record, or None if the part is missing, damaged or not whole.

    ``deep``: its documents are hashed as well.
    """
    path = folder / "part.json"
    try:
        tree = unseal(read_plain(path))
        if tree.pop("index") != _hash_index(folder):
            raise ValueError("its index is another one")
        record = checked(_RECORD, tree)
        splits = record.splits.items()
        files = [(folder / split / file.name, file) for split, part in splits for file in part]
        if not have_sizes((path, file.bytes) for path, file in files):
            return None
        for path, file in files if deep else ():
            check_documents(path, file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, DataError) as error:
        found = str(error).removesuffix(AGAIN)
        logger.warning("%s: damaged, and made again: %s", folder, found)
        return None
    return record


def load_whole_part(folder: Path) -> PartRecord | None:
    """The same, with all that it holds looked at. A damaged one loses its record, so that whoever
    does it next makes it anew.
    """
    record = load_part(folder, deep=True)
    if record is None:
        (folder / "part.json").unlink(missing_ok=True)
    return record


def _hash_index(folder: Path) -> str | None:
    """Of the index, where the settings want one."""
    try:
        with open_plain(folder / "index.npy") as file:
            return hash_documents(file)
    except FileNotFoundError:
        return None


def _write_part(part: Part, work: Path) -> PartRecord:
    cleaner = Cleaner(part.source, part.config, part.files)
    writers: dict[str, DocumentWriter] = {}
    try:
        for split in SPLITS:
            writers[split] = DocumentWriter(work / split)
        for split, document in cleaner.documents():
            writers[split].write(document)
        splits = {split: writer.close() for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()
    if part.config.drop_exact_duplicates:
        write_index(work / "index.npy", cleaner.index)
    return PartRecord(
        documents_read=cleaner.read,
        dropped=dict(cleaner.dropped),
        cut=dict(cleaner.cut),
        line_ends=cleaner.line_ends,
        normalized=cleaner.normalized,
        markup_chars=cleaner.markup_chars,
        passed_over=dict(cleaner.account.passed_over),
        broken=tuple(cleaner.account.named),
        files_without_text=len(cleaner.without_text),
        without_text=tuple(cleaner.without_text[:NAMED_FILES]),
        splits=splits,
    )
