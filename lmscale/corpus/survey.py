"""What raw files hold, found by looking into them: formats, text fields, encodings, sizes.

For ``lmscale init``, which writes the settings down; a build reads by those and guesses nothing.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmscale.config.corpus import PLAIN, CorpusConfig, CorpusSourceConfig
from lmscale.corpus.account import Account
from lmscale.corpus.broken import describe_broken
from lmscale.corpus.clean import Sameness, is_heldout, strip_html
from lmscale.corpus.encoding_votes import vote_encodings
from lmscale.corpus.guess import (
    FIELDS,
    FILE_BYTES,
    Settings,
    guess_settings,
    read_head,
    show_field,
)
from lmscale.corpus.inputs import RawFile, find_inputs, format_of
from lmscale.corpus.readers import decoded, read_file
from lmscale.corpus.text_files import PACKINGS
from lmscale.errors import DataError
from lmscale.files.found import FoundFile, find_files
from lmscale.files.locations import is_remote
from lmscale.files.printing import count_of
from lmscale.files.strangers import quote

# Files of an ending whose encoding and fields are looked for, to twice as many; the others are as
# most of these.
LOOKED_AT = 200
FEW = 4  # files that are not worth a pattern of their own are fewer
MOST_PROBLEMS = 20  # files that are told
MOST_INPUTS = 1000  # lines of a configuration that a person may look through
ALL_BYTES = 64 << 20  # and of all of them
SAMPLE_CHARS = 2 << 20
# Unpacked to packed, of text; what is read tells better.
_RATIOS = {".gz": 3.0, ".bz2": 4.0, ".xz": 4.5, ".zst": 3.5}
_TEXT_SHARE = 0.9  # of what a record's file holds, where nothing was read to its end


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found in the files of one source."""

    inputs: tuple[str | Mapping[str, str], ...]
    """As ``corpus.sources.NAME.inputs`` takes them."""
    files: int
    formats: Mapping[str, int]
    documents: int
    text_bytes: int
    """Of UTF-8, without markup."""
    is_exact: bool
    """Whether all files were read; else they are estimates."""
    digests: tuple[bytes, ...]
    """Of the documents that were read, each text once: what ``is_heldout`` goes by."""
    sample: str
    """Some of the text."""
    notes: tuple[str, ...] = ()
    """What a person should know of it."""

    @property
    def unique_share(self) -> float:
        """Part of the documents that are no copy of another one, among those read."""
        return min(1.0, len(self.digests) / self.documents) if self.is_exact else 1.0

    def count_heldout(self, fraction: float) -> int:
        """Documents that are held out by such a ``corpus.heldout_fraction``, about."""
        found = sum(is_heldout(digest, fraction) for digest in self.digests)
        return found if self.is_exact else max(found, int(fraction * self.documents * 0.5))


def merge_surveys(surveys: Sequence[Survey]) -> Survey:
    """Of several sources as of one, but for the inputs, which are of each. ``count_heldout`` is to
    be asked of each, too: a source may be too small to have any.
    """
    formats = sum((Counter(each.formats) for each in surveys), Counter[str]())
    share = SAMPLE_CHARS // len(surveys)
    return Survey(
        inputs=(),
        files=sum(each.files for each in surveys),
        formats=formats,
        documents=sum(each.documents for each in surveys),
        text_bytes=sum(each.text_bytes for each in surveys),
        is_exact=all(each.is_exact for each in surveys),
        digests=tuple(dict.fromkeys(digest for each in surveys for digest in each.digests)),
        sample="".join(each.sample[:share] for each in surveys),
        notes=tuple(note for each in surveys for note in each.notes),
    )


def survey_files(words: Sequence[str], name: str = "files") -> Survey:
    """Look at the files that paths, patterns, folders and URLs name, for a source of this name.

    Raises ``DataError``.
    """
    found, notes = _expand(words)
    files = {file.location: file for each in found.values() for file in each}
    settings, votes = _guess_all(files)
    inputs = _name_inputs(settings, found)
    tree = {"inputs": inputs, "max_bad_records": 10**9}
    source = CorpusSourceConfig.model_validate(tree)
    raw_files = find_inputs(CorpusConfig(sources={name: source}))[name]
    notes += [*votes, *_describe_encodings(settings.values()), *_describe_fields(settings, files)]
    return _read(raw_files, Account(name, source), inputs, notes)


def _describe_encodings(settings: Iterable[Settings]) -> Iterator[str]:
    """What was taken for another encoding than UTF-8, which only a person can judge."""
    encodings = Counter(dict(own).get("encoding") for own in settings)
    encodings.pop(None, None)
    for encoding, number in encodings.most_common():
        yield (
            f"{count_of(number, 'file')} not of UTF-8, read as {encoding}: lmscale corpus build "
            "writes what comes of it, look at some"
        )


def _describe_fields(
    settings: Mapping[str, Settings], files: Mapping[str, FoundFile]
) -> Iterator[str]:
    """Keys that were taken for the text though text has no such name, with what they hold."""
    places: dict[str, list[str]] = {}
    for place, own in settings.items():
        if (key := dict(own).get("text_field", FIELDS[0])) not in FIELDS:
            places.setdefault(key, []).append(place)
    for key, alike in places.items():
        first = files[alike[0]]
        yield (
            f"{count_of(len(alike), 'file')}: the text was taken to be under the key {quote(key)}, "
            f"which holds the longest, such as {show_field(first, settings[alike[0]])} in "
            f"{first.shown}: if it is not, set text_field there"
        )


def _guess_all(files: Mapping[str, FoundFile]) -> tuple[dict[str, Settings], list[str]]:
    """The settings of every file, and what is to be told of them; those that are not looked at have
    those of most of their ending, of which another one's say nothing.
    """
    places: dict[str, list[str]] = {}
    for place in sorted(files):
        places.setdefault(_ending_of(files[place]), []).append(place)
    settings: dict[str, Settings] = {}
    notes: list[str] = []
    problems: list[str] = []
    for alike in places.values():
        step = max(1, len(alike) // LOOKED_AT)
        looked_at: dict[str, Settings] = {}
        for place in alike[::step]:
            try:
                looked_at[place] = guess_settings(files[place])
            except DataError as error:
                problems += error.problems
        if not looked_at:
            continue
        looked_at, told = vote_encodings(looked_at, files)
        notes += told
        most, _ = Counter(looked_at.values()).most_common(1)[0]
        settings |= {place: looked_at.get(place, most) for place in alike}
    if problems:
        more = len(problems) - MOST_PROBLEMS
        told = problems[:MOST_PROBLEMS] + [f"{count_of(more, 'more file')} like these."][: more > 0]
        raise DataError(told)
    return settings, notes


def _expand(words: Sequence[str]) -> tuple[dict[str, list[FoundFile]], list[str]]:
    """Pattern → files that can be read, for the words, and what is passed over."""
    problems: list[str] = []
    unknown: Counter[str] = Counter()
    found: dict[str, list[FoundFile]] = {}
    for word in words:
        match = find_files(word)
        if match.folders and is_remote(word):
            problems.append(
                f"{word}: is a folder: name its files, {word.rstrip('/')}/*.jsonl, say."
            )
        below = [file for folder in match.folders for file in _files_below(folder)]
        if not (match.files or below or problems):
            problems.append(f"{word}: no such file (looked from {os.getcwd()}).")
        named = [(word, file) for file in match.files]
        named += [(f"{word.rstrip('/')}/**/*{_ending_of(file)}", file) for file in below]
        for pattern, file in named:
            if format_of(file.location) or (pattern == word and _is_text(file)):
                found.setdefault(pattern, []).append(file)
            else:
                unknown[file.ending or "no ending"] += 1
    notes = [
        f"passed over: {count_of(number, 'file')} ({ending}), which lmscale does not know"
        for ending, number in unknown.most_common(5)
    ]
    if not found and not problems:
        problems = [f"{' '.join(words[:3])}: no file that can be read. {'; '.join(notes)}"]
    if problems:
        raise DataError(problems)
    return found, notes


def _files_below(folder: str) -> Iterator[FoundFile]:
    """Also behind links to folders, as the build's patterns find them; in a circle of links each
    folder once.
    """
    seen: set[str] = set()
    for above, folders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(above)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield from find_files(os.path.join(above, name)).files


def _ending_of(file: FoundFile) -> str:
    """``.jsonl.gz`` of such a file."""
    return "".join(Path(file.name).suffixes[-2 if file.ending in PACKINGS else -1 :])


def _is_text(file: FoundFile) -> bool:
    return b"\0" not in read_head(file)[:4096]


def _name_inputs(
    settings: Mapping[str, Settings], found: Mapping[str, Sequence[FoundFile]]
) -> tuple[str | dict[str, str], ...]:
    """The patterns of a person, where one names these files and no others, and most have the same
    settings; of other files, also those that a shell made of a pattern, one for each folder where
    that is so, or each. The few that are otherwise are named, too, which comes before a pattern.
    Raises ``DataError`` for very many.
    """
    inputs: dict[str, Settings] = {}
    others: dict[str, FoundFile] = {}
    for pattern, files in found.items():
        is_pattern = pattern != files[0].location
        named = _with_exceptions(pattern, files, settings) if is_pattern else {}
        if named and len(named) <= 1 + FEW:
            inputs |= named
        else:
            others |= {file.location: file for file in files}
    for pattern, files in _by_folder(others.values()).items():
        named = _with_exceptions(pattern, files, settings) if len(files) >= FEW else {}
        inputs |= named or {file.location: settings[file.location] for file in files}
    if len(inputs) > MOST_INPUTS:
        kinds = Counter(own for own in inputs.values() if own).most_common(3)
        told = "; ".join(f"{number:,} {_describe_settings(own)}" for own, number in kinds)
        raise DataError(
            f"{len(inputs):,} inputs would be needed, of which a configuration may well have "
            f"{MOST_INPUTS:,}: let each folder hold files that are read alike, and name it"
            f"{' (now there are ' * bool(told)}{told}{')' * bool(told)}."
        )
    named_inputs = sorted(inputs.items())
    return tuple({"files": each, **dict(own)} if own else each for each, own in named_inputs)


def _with_exceptions(
    pattern: str, files: Sequence[FoundFile], settings: Mapping[str, Settings]
) -> dict[str, Settings]:
    """A pattern that names these files alone, and those that are not read as most of them; empty
    where it names others, or those are more than half.
    """
    places = {file.location for file in files}
    most, number = Counter(settings[place] for place in sorted(places)).most_common(1)[0]
    if 2 * number < len(places) or {each.location for each in find_files(pattern).files} != places:
        return {}
    others = {place: settings[place] for place in places if settings[place] != most}
    return {pattern: most, **others}


def _by_folder(files: Iterable[FoundFile]) -> dict[str, list[FoundFile]]:
    """Pattern → files of one folder and ending."""
    folders: dict[str, list[FoundFile]] = {}
    for file in files:
        above = file.location.removesuffix(file.name)
        pattern = file.location if file.is_remote else f"{glob.escape(above)}*{_ending_of(file)}"
        folders.setdefault(pattern, []).append(file)
    return folders


def _describe_settings(settings: Settings) -> str:
    return " and ".join(f"{key} {value}" for key, value in settings)


@dataclass
class _Reading:
    """What was read so far."""

    documents: float = 0
    text_bytes: float = 0
    read_bytes: int = 0
    is_exact: bool = True
    digests: dict[bytes, None] = field(default_factory=dict)
    sample: list[str] = field(default_factory=list)
    sampled: int = 0
    shares: dict[str, list[int]] = field(default_factory=dict)  # ending → bytes of text and of file

    def take(self, file: RawFile, account: Account) -> None:
        begun, documents = self.read_bytes, 0
        for text in _read_texts(file, account):
            text = strip_html(text) if file.has_markup else text
            documents += 1
            self.digests[Sameness([text]).digest] = None
            self.read_bytes += len(text.encode("utf-8", "replace"))
            if self.sampled < SAMPLE_CHARS:
                self.sample.append(text[:SAMPLE_CHARS])
                self.sampled += len(text)
            if self.read_bytes - begun > FILE_BYTES:
                self._add_estimate(file, documents, self.read_bytes - begun)
                return
        read = self.read_bytes - begun
        self.documents += documents
        self.text_bytes += read
        share = self.shares.setdefault(file.ending, [0, 0])
        share[0], share[1] = share[0] + read, share[1] + file.bytes

    def guess(self, file: RawFile) -> None:
        """Add a file that is not read."""
        mean = self.read_bytes / max(1, len(self.digests))
        self._add_estimate(file, 1, int(mean) or 1)

    def _add_estimate(self, file: RawFile, documents: int, text_bytes: int) -> None:
        """Of a file of which so many documents of so much text are known."""
        self.is_exact = False
        text, raw = self.shares.get(file.ending, (0, 0))
        share = text / raw if raw else _TEXT_SHARE * _RATIOS.get(file.ending, 1.0)
        total = max(text_bytes, file.bytes * share)
        self.text_bytes += total
        is_one = file.format in PLAIN and not file.rules.separator
        self.documents += 1.0 if is_one else max(1.0, documents * total / max(1, text_bytes))


def _read_texts(file: RawFile, account: Account) -> Iterator[str]:
    """The texts of a file; of one that is a single document, and may be larger than the memory, the
    beginning.
    """
    if file.format not in PLAIN or file.rules.separator:
        yield from ("".join(pieces) for _, pieces in read_file(file, account))
        return
    account.begin(file)
    pieces, chars = [], 0
    for piece in decoded(file, account):
        pieces.append(piece)
        chars += len(piece)
        if chars > FILE_BYTES:
            break
    if account.takes(pieces, file.shown):
        yield "".join(pieces)


def _read(
    raw_files: Sequence[RawFile],
    account: Account,
    inputs: tuple[str | dict[str, str], ...],
    notes: list[str],
) -> Survey:
    reading = _Reading()
    # The smaller ones first: those that are read to their end tell of the others.
    for file in sorted(raw_files, key=lambda each: each.bytes):
        if reading.read_bytes < ALL_BYTES:
            reading.take(file, account)
        else:
            reading.guess(file)
    if account.broken:
        first = next(describe_broken(account.named), "")
        notes.append(
            f"{count_of(account.broken, 'broken record')}, at which corpus build stops unless "
            f"max_bad_records allows it. The first: {first}"
        )
    notes += [f"passed over: {number:,} {what}" for what, number in account.passed_over.items()]
    if not reading.documents:
        raise DataError([f"{count_of(len(raw_files), 'file')}, and no text in them.", *notes])
    return Survey(
        inputs=inputs,
        files=len(raw_files),
        formats=Counter(file.format for file in raw_files),
        documents=round(reading.documents),
        text_bytes=round(reading.text_bytes),
        is_exact=reading.is_exact,
        digests=tuple(reading.digests),
        sample="".join(reading.sample)[:SAMPLE_CHARS],
        notes=tuple(notes),
    )
