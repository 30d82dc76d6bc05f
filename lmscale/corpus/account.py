"""What became of the records of a source that gave no text: broken, or passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from lmscale.config.corpus import CorpusSourceConfig
from lmscale.corpus.fields import RecordFields
from lmscale.corpus.inputs import RawFile
from lmscale.corpus.text_files import find_undecodable
from lmscale.errors import DataError
from lmscale.files.printing import count_of

# A text in pieces: a tuple, or a ``MarkedText`` where something is said of it; what is too large to
# be held reads its file each time anew.
Pieces = Iterable[str]
HANDFUL = 5  # how many broken records beyond the limit are named before the error is raised


class TooManyBrokenError(DataError):
    """So many records are broken that reading on would tell no more."""


class Account:
    """What became of the records of one source, or of a part of it, that gave no text."""

    def __init__(self, name: str, source: CorpusSourceConfig) -> None:
        self.setting = f"corpus.sources.{name}"
        self.source = source
        self.fields = RecordFields(source)
        self._of_input: Collection[str] = ()
        self.broken = 0
        self.named: list[str] = []  # some of the broken ones, in words
        self.passed_over: Counter[str] = Counter()  # what is no record, by what it is

    def begin(self, file: RawFile) -> None:
        """The next records are of this file, and read by its rules."""
        self._of_input = dict(file.own).keys()
        if file.rules != self.source:
            self.source, self.fields = file.rules, RecordFields(file.rules)

    def name_of(self, key: str) -> str:
        """Where the file's setting stands: its own input's, or the source's."""
        return f"{self.setting}.{'inputs: ' if key in self._of_input else ''}{key}"

    def add_broken(self, problem: str) -> None:
        limit = self.source.max_bad_records
        self.broken += 1
        if len(self.named) < min(limit + HANDFUL, 4 * HANDFUL):
            self.named.append(problem)
        if self.broken >= limit + HANDFUL:
            raise TooManyBrokenError(self.problems(more=True))

    def include(self, broken: int, named: Sequence[str]) -> None:
        """Those of a part; ``named`` are some of them, in words."""
        self.broken += broken
        self.named += named[: 4 * HANDFUL - len(self.named)]

    def problems(self, *, more: bool = False) -> list[str]:
        """What to say if more are broken than ``max_bad_records``; empty otherwise."""
        limit = self.source.max_bad_records
        if self.broken <= limit:
            return []
        setting = f"{self.setting}.max_bad_records"
        stopped = ", and reading stopped there" if more else ""
        return [
            *self.named,
            f"{count_of(self.broken, 'broken record')}{stopped}; {setting} = {limit} allows "
            f"{limit}. Repair the files or raise {setting}; skipped records are counted.",
        ]

    def check(self) -> None:
        """Raise ``DataError`` if more are broken than that."""
        if problems := self.problems():
            raise DataError(problems)

    def takes(self, pieces: Pieces, where: str) -> bool:
        """Whether a decoded text is of its encoding, or broken."""
        found = find_undecodable(pieces)
        if found:
            setting = self.name_of("encoding")
            self.add_broken(f"{where}: not {self.source.encoding} ({setting}): {found}.")
        return not found

    def add_long(self, where: str) -> None:
        limit = f"{self.setting}.max_record_chars = {self.source.max_record_chars:,}"
        self.add_broken(f"{where}: longer than {limit}.")
