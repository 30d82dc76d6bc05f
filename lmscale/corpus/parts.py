"""A part of a source: a run of raw files, cleaned by one process into a folder.

<key>/{train,heldout}/documents-00000.jsonl    the documents, before duplicates of other parts go
<key>/index.npy                                digests of the texts, to find duplicates by
<key>/part.json                                counts of documents read, dropped and written
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import xxhash
from pydantic import TypeAdapter

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.account import Account, Pieces, TooManyBrokenError, ignore
from lmscale.corpus.broken import Broken, broken_file, describe_broken
from lmscale.corpus.clean import (
    Sameness,
    cut_stretches,
    is_heldout,
    normalize,
    split_text,
    strip_html,
    with_lf,
)
from lmscale.corpus.documents import (
    AGAIN,
    SPLITS,
    Document,
    DocumentWriter,
    Splits,
    check_documents,
    hash_documents,
)
from lmscale.corpus.duplicates import index_row, write_index
from lmscale.corpus.fields import MarkedText
from lmscale.corpus.inputs import RawFile
from lmscale.corpus.messages import USER, cut_behind_answer
from lmscale.corpus.readers import read_file
from lmscale.errors import DataError
from lmscale.files.atomic import fsync_folder, have_sizes, write_bytes, writing
from lmscale.files.reading import open_plain, read_plain, seal, unseal
from lmscale.files.redact import printable_name
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
    cleaner = Cleaner(part)
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


@dataclass
class _Tidied:
    """A text in its normal form and with its line ends, in stretches, each time it is iterated."""

    pieces: Pieces
    config: CorpusConfig
    has_cr: bool = False
    had_other_form: bool = False

    def __iter__(self) -> Iterator[str]:
        for stretch in cut_stretches(self.pieces):
            if self.config.line_ends == "lf" and "\r" in stretch:
                self.has_cr, stretch = True, with_lf(stretch)
            normal = normalize(stretch, self.config.normalization)
            if normal != stretch:
                self.had_other_form = True
            yield normal


class Fate(NamedTuple):
    """What became of a text that was read."""

    id: str
    reason: str | None
    """It was dropped for; None: it was kept."""
    digest: bytes


class Cleaner:
    """Applies the rules to a part's documents and counts the documents that each rule dropped.

    ``tell`` hears of every text, and of every record that is none, before the next one is read.
    """

    def __init__(self, part: Part, tell: Callable[[Fate | Broken], None] = ignore) -> None:
        self.read = self.line_ends = self.normalized = self.markup_chars = 0
        self.dropped: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.index = array("Q")
        self.account = Account(part.source, part.config.sources[part.source], tell)
        self.without_text: list[str] = []  # files
        self._has_answers = bool(part.config.sources[part.source].answer_field)
        self._tell = tell
        self._part = part
        self._heldout_fraction = part.config.holds_out(part.source)
        self._seen: set[bytes] = set()
        self._lines: dict[str, int] = dict.fromkeys(SPLITS, 0)

    def documents(self) -> Iterator[tuple[str, Document]]:
        """Pairs of split and document, in the order of the raw files.

        Raises ``DataError`` in the end, with what is wrong with any file; of very much the first.
        """
        unreadable: list[Broken] = []
        for file in self._part.files:
            texts = self._num_texts()
            try:
                for number, pieces in read_file(file, self.account):
                    self.read += 1
                    name = f"{printable_name(file.name)}:{number}"
                    yield from self._clean(name, self._strip(pieces) if file.has_markup else pieces)
            except TooManyBrokenError as error:
                raise DataError([*describe_broken(unreadable), *error.problems]) from None
            except DataError as error:
                unreadable += [broken_file(file, problem) for problem in error.problems]
                if len(unreadable) >= MOST_UNREADABLE:
                    break
            if self._num_texts() == texts:
                self.without_text.append(file.shown)
        if told := [*describe_broken(unreadable), *self.account.problems()]:
            stopped = [f"{len(unreadable)} files cannot be read, and reading stopped there."]
            raise DataError(told + stopped * (len(unreadable) >= MOST_UNREADABLE))
        self.read += self.account.broken
        if self.account.broken:
            self.dropped["broken"] = self.account.broken

    def _num_texts(self) -> int:
        """Documents up to here that were dropped for nothing but another of the same text."""
        return self.read - self.dropped.total() + self.dropped["duplicate"]

    def _clean(self, name: str, pieces: Pieces) -> Iterator[tuple[str, Document]]:
        config = self._part.config
        if isinstance(pieces, MarkedText):
            yield from self._clean_marked(name, pieces)
            return
        tidied = _Tidied(pieces, config)
        text = tuple(tidied) if isinstance(pieces, tuple) else tidied
        same = Sameness(text)
        self.line_ends += tidied.has_cr
        self.normalized += tidied.had_other_form
        is_cut = same.all_chars > config.max_chars
        reason = self._reason_to_drop(same.chars, same.digest, is_cut=is_cut)
        if reason is not None:
            self._drop(name, reason, same.digest)
            return
        # The whole text decides, so the pieces of a split document stay on one side.
        split = "heldout" if is_heldout(same.digest, self._heldout_fraction) else "train"
        documents = split_text(text, config.max_chars)
        if is_cut:
            self.cut[CUT_AS[config.on_overlong]] += 1
            documents = documents if config.on_overlong == "split" else islice(documents, 1)
        lines = 0
        for lines, document in enumerate(documents, start=1):
            id_ = f"{name}#{lines}" if is_cut and config.on_overlong == "split" else name
            yield split, Document(text=document, id=id_, source=self._part.source)
        self._remember(name, same.digest, split, lines, is_cut=is_cut)

    def _clean_marked(self, name: str, marked: MarkedText) -> Iterator[tuple[str, Document]]:
        """What is said of a text is said of all of it: none is split, and only one without parts is
        truncated, or a dialogue, behind an answer. What is read decides on which side it is, so a
        text lies on one, whatever is to be written or said of it: of a question its context, of a
        dialogue the first question.
        """
        config = self._part.config
        tidied = [_Tidied((piece,), config) for piece in marked]
        texts = ["".join(text) for text in tidied]
        self.line_ends += any(text.has_cr for text in tidied)
        self.normalized += any(text.had_other_form for text in tidied)
        if marked.has_span:
            span, texts = _span_of(texts), [texts[0], "".join(texts[1:])]
        else:
            span = ()
        parts = texts if marked.has_parts else ["".join(texts)]
        sames = [Sameness([part]) for part in parts]
        said = json.dumps([marked.label, marked.tags, *span, *marked.roles]).encode()
        digest = xxhash.xxh128(b"".join(same.digest for same in sames) + said).digest()
        is_cut = sum(same.all_chars for same in sames) > config.max_chars
        kept = 1 if len(texts) == 1 else 0  # texts that stay of one that is truncated
        if marked.roles:
            all_chars = [same.all_chars for same in sames]
            kept = cut_behind_answer(marked.roles, all_chars, max_chars=config.max_chars)
        may_cut = config.on_overlong == "truncate" and kept > 0
        chars = [same.chars for same in sames]
        reason = "empty"
        if all(chars):
            reason = self._reason_to_drop(sum(chars), digest, is_cut=is_cut)
        if reason is None and is_cut and not may_cut:
            reason = "overlong"
        if reason is not None:
            self._drop(name, reason, digest)
            return
        # Several questions have one context, which is what a model could know by heart.
        deciding = sames[-1 if self._has_answers else 0]
        if marked.roles:
            deciding = sames[marked.roles.index(USER)]
        split = "heldout" if is_heldout(deciding.digest, self._heldout_fraction) else "train"
        if is_cut:
            self.cut["truncated"] += 1
            is_one = not marked.roles
            texts = [next(split_text(texts, config.max_chars))] if is_one else texts[:kept]
        yield (
            split,
            Document(
                text="".join(texts),
                id=name,
                source=self._part.source,
                parts=tuple(map(len, texts)) if marked.has_parts or marked.tags else (),
                label=marked.label,
                tags=marked.tags,
                span=span,
                roles=marked.roles[: len(texts)],
            ),
        )
        self._remember(name, digest, split, 1, is_cut=is_cut)

    def _strip(self, pieces: Pieces) -> Pieces:
        """The same without markup, which is counted."""
        texts = list(pieces) if isinstance(pieces, MarkedText) else ["".join(pieces)]
        stripped = tuple(map(strip_html, texts))
        self.markup_chars += sum(map(len, texts)) - sum(map(len, stripped))
        return replace(pieces, pieces=stripped) if isinstance(pieces, MarkedText) else stripped

    def _drop(self, name: str, reason: str, digest: bytes) -> None:
        self.dropped[reason] += 1
        self._tell(Fate(name, reason, digest))

    def _remember(self, name: str, digest: bytes, split: str, lines: int, *, is_cut: bool) -> None:
        """That a text was written, in so many lines."""
        self._tell(Fate(name, None, digest))
        if self._part.config.drop_exact_duplicates:
            self._seen.add(digest)
            first = self._lines[split]
            self.index.extend(index_row(digest, split, first, lines, is_cut=is_cut))
        self._lines[split] += lines

    def _reason_to_drop(self, chars: int, digest: bytes, *, is_cut: bool) -> str | None:
        config = self._part.config
        if chars < config.min_chars:
            return "short" if chars else "empty"
        if is_cut and config.on_overlong == "drop":
            return "overlong"
        return "duplicate" if digest in self._seen else None


def _span_of(texts: Sequence[str]) -> tuple[int, int]:
    """Of the four pieces of a question with an answer, where the third lies in all of them."""
    begin = len(texts[0]) + len(texts[1])
    return begin, begin + len(texts[2])


CUT_AS = {"split": "split", "truncate": "truncated"}  # how corpus.on_overlong is counted
MOST_UNREADABLE = 20  # files of a part; with more of them reading stops
NAMED_FILES = 20  # of those that gave no text
