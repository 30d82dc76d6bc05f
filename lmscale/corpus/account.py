"""What became of the records of a source that gave no text: broken, or passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from lmscale.config.corpus import CorpusSourceConfig
from lmscale.corpus.broken import Broken, describe_broken, describe_encoding
from lmscale.corpus.encodings import find_mark, looks_like_utf16
from lmscale.corpus.fields import RecordFields
from lmscale.corpus.inputs import RawFile
from lmscale.corpus.page_encoding import AUTO, TextEncoding, find_page_encoding
from lmscale.corpus.text_files import find_undecodable
from lmscale.errors import DataError
from lmscale.files.printing import count_of

# A text in pieces: a tuple, or a ``MarkedText`` where something is said of it; what is too large to
# be held reads its file each time anew.
Pieces = Iterable[str]
LOOK_CHARS = 4096  # of a text, by which it is told from one of another encoding
HANDFUL = 5  # how many broken records beyond the limit are named before the error is raised


class TooManyBrokenError(DataError):
    """So many records are broken that reading on would tell no more."""


def ignore(told: object) -> None:
    """What nobody wants to hear."""


class Account:
    """What became of the records of one source, or of a part of it, that gave no text. ``tell``
    hears of every broken one.
    """

    def __init__(
        self,
        name: str,
        source: CorpusSourceConfig,
        tell: Callable[[Broken], None] = ignore,
    ) -> None:
        self.setting = f"corpus.sources.{name}"
        self.source = source
        self.fields = RecordFields(source)
        self._of_input: Collection[str] = ()
        self._tell = tell
        self.broken = 0
        self.named: list[Broken] = []  # some of the broken ones
        self._file: RawFile | None = None
        self._text = TextEncoding("")  # by which the last text was decoded
        self._guess: str | None = None  # of its encoding, once it is asked for
        self.passed_over: Counter[str] = Counter()  # what is no record, by what it is

    def begin(self, file: RawFile) -> None:
        """The next records are of this file, and read by its rules."""
        self._of_input = dict(file.own).keys()
        self._file, self._guess = file, None
        if file.rules != self.source:
            self.source, self.fields = file.rules, RecordFields(file.rules)

    def choose_encoding(self, head: bytes) -> str:
        """By which a text of the file is decoded that begins so."""
        is_page = self._file is not None and self._file.format == "html"
        mark = find_mark(head) if is_page else None
        if self.source.encoding != AUTO:
            self._text = TextEncoding(mark or self.source.encoding)
        else:
            self._text = find_page_encoding(head) if is_page else TextEncoding("utf-8")
        return self._text.name

    def _describe_encoding(self) -> str:
        """The one that a text was decoded by, and where that is said."""
        name, label = self._text
        if not label:
            return f"{name} ({self.name_of('encoding')})"
        means = f", which is {name}," if label.replace("_", "-") != name else ","
        return f"{label}{means} as it declares; {self.name_of('encoding')} would overrule that"

    def name_of(self, key: str) -> str:
        """Where the file's setting stands: its own input's, or the source's."""
        return f"{self.setting}.{'inputs: ' if key in self._of_input else ''}{key}"

    def add_broken(self, where: str, what: str, detail: str = "") -> None:
        limit, broken = self.source.max_bad_records, Broken(where, what, detail)
        self.broken += 1
        self._tell(broken)
        if len(self.named) < min(limit + HANDFUL, 4 * HANDFUL):
            self.named.append(broken)
        if self.broken >= limit + HANDFUL:
            raise TooManyBrokenError(self.problems(more=True))

    def include(self, broken: int, named: Sequence[Broken]) -> None:
        """Those of a part; ``named`` are some of them."""
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
            *describe_broken(self.named),
            f"{count_of(self.broken, 'broken record')}{stopped}; {setting} = {limit} allows "
            f"{limit}. Repair the files or raise {setting}; skipped records are counted.",
        ]

    def check(self) -> None:
        """Raise ``DataError`` if more are broken than that."""
        if problems := self.problems():
            raise DataError(problems)

    def takes(self, pieces: Pieces, where: str) -> bool:
        """Whether a decoded text is of its encoding, or broken."""
        beginning = ""

        def watched() -> Iterator[str]:
            nonlocal beginning
            for piece in pieces:
                if len(beginning) < LOOK_CHARS:
                    beginning += piece[:LOOK_CHARS]
                yield piece

        found, name = find_undecodable(watched()), None
        what = f"not {self._describe_encoding()}"  # which is known once it was read
        if found:
            if self._guess is None:
                self._guess = describe_encoding(self._file) if self._file else ""
            self.add_broken(where, f"{what}{'; ' * bool(self._guess)}{self._guess}", found)
        elif name := looks_like_utf16(beginning):
            found = f"it holds a NUL for every few characters, as {name} does"
            self.add_broken(where, what, found)
        return not (found or name)

    def add_long(self, where: str) -> None:
        limit = f"{self.setting}.max_record_chars = {self.source.max_record_chars:,}"
        self.add_broken(where, f"longer than {limit}")
