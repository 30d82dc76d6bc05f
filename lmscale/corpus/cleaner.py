"""Raw files → cleaned documents, and what became of every text that was read."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import xxhash

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
from lmscale.corpus.documents import SPLITS, Document
from lmscale.corpus.duplicates import index_row
from lmscale.corpus.fields import MarkedText
from lmscale.corpus.inputs import RawFile
from lmscale.corpus.messages import USER, cut_behind_answer
from lmscale.corpus.readers import read_file
from lmscale.errors import DataError
from lmscale.files.redact import printable_name

CUT_AS = {"split": "split", "truncate": "truncated"}  # how corpus.on_overlong is counted
MOST_UNREADABLE = 20  # files of a part; with more of them reading stops
NAMED_FILES = 20  # of those that gave no text


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

    def __init__(
        self,
        source: str,
        config: CorpusConfig,
        files: Sequence[RawFile],
        tell: Callable[[Fate | Broken], None] = ignore,
    ) -> None:
        self.read = self.line_ends = self.normalized = self.markup_chars = 0
        self.dropped: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.index = array("Q")
        self.account = Account(source, config.sources[source], tell)
        self.without_text: list[str] = []  # files
        self._has_answers = bool(config.sources[source].answer_field)
        self._tell = tell
        self._name, self._config, self._files = source, config, files
        self._heldout_fraction = config.holds_out(source)
        self._seen: set[bytes] = set()
        self._lines: dict[str, int] = dict.fromkeys(SPLITS, 0)

    def documents(self) -> Iterator[tuple[str, Document]]:
        """Pairs of split and document, in the order of the raw files.

        Raises ``DataError`` in the end, with what is wrong with any file; of very much the first.
        """
        unreadable: list[Broken] = []
        for file in self._files:
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
        config = self._config
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
            yield split, Document(text=document, id=id_, source=self._name)
        self._remember(name, same.digest, split, lines, is_cut=is_cut)

    def _clean_marked(self, name: str, marked: MarkedText) -> Iterator[tuple[str, Document]]:
        """What is said of a text is said of all of it: none is split, and only one without parts is
        truncated, or a dialogue, behind an answer. What is read decides on which side it is, so a
        text lies on one, whatever is to be written or said of it: of a question its context, of a
        dialogue the first question.
        """
        config = self._config
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
                source=self._name,
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
        if self._config.drop_exact_duplicates:
            self._seen.add(digest)
            first = self._lines[split]
            self.index.extend(index_row(digest, split, first, lines, is_cut=is_cut))
        self._lines[split] += lines

    def _reason_to_drop(self, chars: int, digest: bytes, *, is_cut: bool) -> str | None:
        config = self._config
        if chars < config.min_chars:
            return "short" if chars else "empty"
        if is_cut and config.on_overlong == "drop":
            return "overlong"
        return "duplicate" if digest in self._seen else None


def _span_of(texts: Sequence[str]) -> tuple[int, int]:
    """Of the four pieces of a question with an answer, where the third lies in all of them."""
    begin = len(texts[0]) + len(texts[1])
    return begin, begin + len(texts[2])
