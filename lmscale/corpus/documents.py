"""The corpus on disk: documents as JSON lines in numbered files, and a manifest that lists them.

``FOLDER/<source>/{train,heldout}/documents-00000.jsonl`` holds ``{"text", "id", "source"}`` a line,
and what is said of the text;
``FOLDER/<source>/manifest.json`` holds what was read, dropped and written, and each file's hash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import xxhash
from pydantic import AfterValidator, TypeAdapter

from lmscale.config.corpus import CorpusSourceConfig
from lmscale.errors import DataError
from lmscale.files.meter import count
from lmscale.files.reading import open_plain, read_plain, reading, sealed, unseal
from lmscale.files.strangers import FileName, checked, parse_json

SPLITS = ("train", "heldout")
FORMAT_VERSION = 3
AGAIN = "Build the corpus again with --force."
FILE_BYTES = 256 * 2**20  # a document file is closed once it has reached this size


@dataclass(frozen=True, kw_only=True)
class Document:
    """A cleaned text. ``id`` is its raw file's name, record, and part if it was split."""

    text: str
    id: str
    source: str
    parts: tuple[int, ...] = ()
    """Characters of the two parts of a pair, of each turn of a dialogue, or of each tagged word
    with what stands before it.
    """
    label: int | float | None = None
    tags: tuple[int, ...] = ()
    span: tuple[int, ...] = ()
    """Where the answer begins in the text, and where it ends, in characters."""
    roles: tuple[str, ...] = ()
    """Of a dialogue, who says each part."""

    def to_line(self) -> bytes:
        """Of what is not said of it there is no key: a line of plain text is what it always was."""
        tree = {key: value for key, value in vars(self).items() if value not in ((), None)}
        return json.dumps(tree, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class DocumentFile:
    """One file of JSON lines and what it must hold."""

    name: FileName
    bytes: int
    documents: int
    text_bytes: int  # UTF-8 bytes of the texts alone
    xxh128: str


def _have_splits(splits: dict[str, Any]) -> dict[str, Any]:
    if sorted(splits) != sorted(SPLITS):
        raise ValueError(f"names not exactly {' and '.join(SPLITS)}")
    return splits


Splits = Annotated[dict[str, tuple[DocumentFile, ...]], AfterValidator(_have_splits)]


@dataclass(frozen=True, kw_only=True)
class CorpusManifest:
    """A source's inputs, counts and files.

    ``documents_read`` are those that were kept and, by reason, ``dropped``.
    """

    source: str
    key: str  # hash of the settings and of the raw files' sizes and times
    made_by: dict[str, Any]
    documents_read: int
    dropped: dict[str, int]
    cut: dict[str, int]  # over-long documents that were split or truncated
    line_ends: int  # documents read with CR LF or CR, which became LF
    passed_over: dict[str, int]  # what is no document, by what it is
    files_read: int
    files_without_text: int  # of which no document came, but such as others gave before
    without_text: tuple[str, ...]  # the first of these
    splits: Splits
    markup_chars: int = 0  # of HTML, which were removed
    normalized: int = 0  # documents written in another Unicode normal form than they were read in

    def documents(self, split: str) -> int:
        return sum(file.documents for file in self.splits[split])

    def text_bytes(self, split: str) -> int:
        return sum(file.text_bytes for file in self.splits[split])

    @property
    def fields(self) -> CorpusSourceConfig:
        """What was read of each record, by the settings that it was made by."""
        names = CorpusSourceConfig.later & self.made_by.keys()
        fields = {name: self.made_by[name] for name in names}
        return CorpusSourceConfig.model_validate({"inputs": ["."], **fields})


_MANIFEST = TypeAdapter(CorpusManifest)


def render_manifest(manifest: CorpusManifest) -> dict[str, Any]:
    """The manifest as JSON data, with its hash."""
    return sealed({"version": FORMAT_VERSION, **asdict(manifest)})


def load_corpus_manifest(folder: str | Path) -> CorpusManifest:
    """The manifest of one source's folder. Raises ``DataError`` when it is missing or not one."""
    path = Path(folder) / "manifest.json"
    missing = "there is no corpus here. Run `lmscale corpus build CONFIG` first."
    # --force replaces nothing that may be somebody else's.
    again = f"Move {folder} away, and build the corpus again."
    with reading(path, again, missing=missing):
        content = read_plain(path)
        tree = parse_json(content)
        if isinstance(tree, dict) and tree.get("version") != FORMAT_VERSION:
            raise DataError(f"{path}: written by another version of lmscale. {again}")
        tree = unseal(content)
        del tree["version"]
        return checked(_MANIFEST, tree)


def document_paths(source_folder: str | Path, split: str) -> list[tuple[Path, DocumentFile]]:
    """A split's files in order, each checked to be there with its size. Raises ``DataError``."""
    manifest = load_corpus_manifest(source_folder)
    paths, problems = [], []
    for file in manifest.splits[split]:
        path = Path(source_folder) / split / file.name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            problems.append(f"{path}: is listed in the corpus manifest and missing.")
        elif size != file.bytes:
            problems.append(f"{path}: has {size:,} bytes; the corpus manifest says {file.bytes:,}.")
        paths.append((path, file))
    if problems:
        raise DataError([*problems, AGAIN])
    return paths


def check_documents(path: Path, file: DocumentFile) -> None:
    """Raises ``DataError`` where a file is not, byte by byte, the one that a manifest lists."""
    with reading(path, AGAIN), open_plain(path) as opened:
        digest = hash_documents(opened)
    if digest != file.xxh128:
        raise DataError(
            f"{path}: its content has changed since it was written: xxh128 is {digest}, the "
            f"manifest says {file.xxh128}. {AGAIN}"
        )


def hash_documents(file: BinaryIO) -> str:
    digest = xxhash.xxh128()
    while piece := file.read(1 << 22):
        digest.update(piece)
    return digest.hexdigest()


def read_documents(folder: str | Path) -> Iterator[str]:
    """The texts of a split's folder (``FOLDER/<source>/train``) in their order."""
    folder = Path(folder)
    for path, file in document_paths(folder.parent, folder.name):
        check_documents(path, file)
        with reading(path, AGAIN), open_plain(path) as lines:
            for line in lines:
                count(len(line))
                yield parse_json(line)["text"]


class FileSums:
    """What the lines of one document file add up to."""

    def __init__(self) -> None:
        self.bytes = self.documents = self.text_bytes = 0
        self._hash = xxhash.xxh128()

    def add(self, line: bytes, *, text_bytes: int) -> None:
        self.bytes += len(line)
        self.documents += 1
        self.text_bytes += text_bytes
        self._hash.update(line)

    def entry(self, name: str) -> DocumentFile:
        return DocumentFile(
            name=name,
            bytes=self.bytes,
            documents=self.documents,
            text_bytes=self.text_bytes,
            xxh128=self._hash.hexdigest(),
        )


class DocumentWriter:
    """Writes one split into a folder, file after file; ``close`` returns the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[DocumentFile] = []
        self._file: BinaryIO | None = None
        folder.mkdir(parents=True)

    def write(self, document: Document) -> None:
        if self._file is None:
            self._file = open(self._folder / f"documents-{len(self._files):05d}.jsonl", "xb")
            self._sums = FileSums()
        line = document.to_line()
        self._file.write(line)
        self._sums.add(line, text_bytes=len(document.text.encode()))
        if self._sums.bytes >= FILE_BYTES:
            self.close()

    def close(self) -> tuple[DocumentFile, ...]:
        """Finish the open file."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._files.append(self._sums.entry(Path(self._file.name).name))
            self._file.close()
            self._file = None
        return tuple(self._files)

    def abandon(self) -> None:
        """Let go of the open file after an error, which on a full disk fails again on flushing."""
        if self._file is not None:
            with suppress(OSError):  # the first error is the one that is reported
                self._file.close()
