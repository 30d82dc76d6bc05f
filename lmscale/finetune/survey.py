"""What the labelled files hold: documents, labels, lengths; all that is broken is told at once."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lmscale.config.corpus import CorpusConfig, CorpusSourceConfig
from lmscale.config.finetune import FILES_OF, FinetuneConfig
from lmscale.corpus.account import Account, Pieces, TooManyBrokenError
from lmscale.corpus.clean import digest_of, is_heldout
from lmscale.corpus.fields import MarkedText, NameFinder
from lmscale.corpus.inputs import RawFile, find_inputs
from lmscale.corpus.messages import USER
from lmscale.corpus.readers import read_file
from lmscale.errors import DataError
from lmscale.shards.dialogues import encode_dialogue
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.chat_template import ChatTemplate

Advance = Callable[[float], None]  # hears of documents that were read


@dataclass(kw_only=True)
class Part:
    """The documents of one set."""

    lengths: array[int] = field(default_factory=lambda: array("q"))
    """The tokens of each document, bos and eos included."""
    places: Counter[int] = field(default_factory=Counter)
    """Number of a class or tag → its documents, or its words."""
    first: dict[int, str] = field(default_factory=dict)
    """Of each of them where it came first."""
    digests: set[bytes] = field(default_factory=set)
    """Of the texts that are read, by which equal ones are found."""
    longest: str = ""
    """Where the longest document stands."""

    most: int = 0
    """Its tokens."""

    @property
    def documents(self) -> int:
        return len(self.lengths)

    def add(self, pieces: Pieces, tokens: int, digest: bytes, where: str) -> None:
        """One more document, which stands at ``where``."""
        if tokens > self.most:
            self.longest, self.most = where, tokens
        self.lengths.append(tokens)
        self.digests.add(digest)
        if not isinstance(pieces, MarkedText):
            return
        for place in pieces.tags or (pieces.label,):
            if isinstance(place, int):
                self.places[place] += 1
                self.first.setdefault(place, where)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found, by ``train``, ``heldout`` and, where there are files, ``test``."""

    parts: Mapping[str, Part]
    names: tuple[str, ...] = ()
    """The classes or tags in their order; a place in ``Part.places`` is one in it."""

    def lengths(self, part: str) -> np.ndarray:
        """int64: the tokens of each document."""
        return np.array(self.parts[part].lengths, dtype=np.int64)

    def counts(self, part: str) -> dict[str, int]:
        """Class → its documents, or tag → its words."""
        places = self.parts[part].places
        return {name: places[place] for place, name in enumerate(self.names)}


def survey_data(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    *,
    has_bos: bool,
    template: ChatTemplate | None = None,
    advance: Advance,
) -> Survey:
    """Read all files once. ``template``: by which dialogues are written.

    Raises ``DataError`` with every broken record and file of all parts.
    """
    finds_names = not config.data.label_names and config.task in ("classes", "tags")
    sources = config.data.sources(("any",) if finds_names else config.data.label_names)
    try:
        files = find_inputs(CorpusConfig(sources=sources))
    except DataError as error:
        told = (re.sub(r"corpus\.sources\.(\w+)\.inputs", r"data.\1", p) for p in error.problems)
        raise DataError([re.sub(r"corpus\.sources\.\w+", "data", each) for each in told]) from None
    names = {name: place for place, name in enumerate(config.data.label_names)}
    reading = _Reading(
        tokenizer=tokenizer,
        extra=1 + (has_bos and tokenizer.bos_id is not None),
        template=template,
        finds_names=finds_names,
        names=names,
        advance=advance,
    )
    parts: dict[str, Part] = {}
    problems: list[str] = []
    for name, source in sources.items():
        try:
            parts |= reading.read(name, source, files[name])
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    order = sort_names(names) if finds_names else [*names]
    renumbered = {names[name]: place for place, name in enumerate(order)}
    for part in parts.values():
        part.places = Counter({renumbered[place]: n for place, n in part.places.items()})
        part.first = {renumbered[place]: where for place, where in part.first.items()}
    return Survey(parts={n: parts[n] for n in FILES_OF if n in parts}, names=tuple(order))


def sort_names(names: Mapping[str, int] | Sequence[str]) -> list[str]:
    """As one would read them: numbers by their size, words by the alphabet."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the reading of all parts shares."""

    tokenizer: Tokenizer
    extra: int  # tokens of a document beside its text
    template: ChatTemplate | None
    finds_names: bool
    names: dict[str, int]  # grows where names are found
    advance: Advance

    def read(
        self, name: str, source: CorpusSourceConfig, files: Sequence[RawFile]
    ) -> dict[str, Part]:
        """The documents of one source, of ``train`` in two parts where some are held out.

        Raises ``DataError`` with all its broken records.
        """
        fraction = source.heldout_fraction or 0.0
        parts = {name: Part(), **({"heldout": Part()} if fraction else {})}
        problems: list[str] = []
        account = Account(name, source)
        account.setting = "data"  # where a person has written its settings
        for file in files:
            account.begin(file)
            if self.finds_names:
                finder = NameFinder(file.rules)
                finder.found = self.names
                account.fields = finder
            try:
                for number, pieces in read_file(file, account):
                    self.advance(1)
                    texts = _texts_of(pieces)
                    if not all(map(str.strip, texts)):
                        continue  # which the corpus drops, and counts
                    digest = digest_of(_deciding_text(pieces, texts, source))
                    is_drawn = is_heldout(digest, fraction)
                    part = parts["heldout" if is_drawn else name]
                    where = f"{file.shown}:{number}"
                    part.add(pieces, self.count(pieces, texts, where), digest, where)
            except TooManyBrokenError as error:
                raise DataError([*problems, *error.problems]) from None
            except DataError as error:
                problems += error.problems
        problems += account.problems()
        if problems:
            raise DataError(problems)
        return parts

    def count(self, pieces: Pieces, texts: Sequence[str], where: str) -> int:
        """The tokens of a document in the shards. Raises ``DataError``."""
        if self.template is None:
            return self.extra + sum(len(self.tokenizer.encode(text)) for text in texts)
        assert isinstance(pieces, MarkedText)
        turns = zip(pieces.roles, texts, strict=True)
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            return len(encode_dialogue(messages, self.template).ids)
        except DataError as error:
            raise DataError([f"{where}: {problem}" for problem in error.problems]) from None


def _texts_of(pieces: Pieces) -> tuple[str, ...]:
    """As the shards encode them: a context as a whole, wherever its answer stands."""
    texts = tuple(pieces)
    if not isinstance(pieces, MarkedText):
        return ("".join(texts),)
    return (texts[0], "".join(texts[1:])) if pieces.has_span else texts


def _deciding_text(pieces: Pieces, texts: Sequence[str], source: CorpusSourceConfig) -> str:
    """By which the corpus holds a document out."""
    if isinstance(pieces, MarkedText) and pieces.roles:
        return texts[pieces.roles.index(USER)]
    if source.answer_field:
        return texts[-1]
    is_pair = isinstance(pieces, MarkedText) and pieces.is_pair
    return texts[0] if is_pair else "".join(texts)
