"""Held-out documents → passages in a row, of which local tasks are made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
_CHINESE = re.compile("[\u3400-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
_ENDS = {
    # A sentence with the white space behind it; an empty line ends one as well.
    "en": re.compile(r".+?(?:[.!?:][\"')\]`]*\s+|\n\s*\n\s*|\Z)", re.DOTALL),
    "zh": re.compile(r".+?(?:[。！？；][”』」）]*\s*|\n\s*|\Z)", re.DOTALL),
}
_SIZES = {"en": (40, 200), "zh": (10, 60)}  # characters of a passage, at least and at most
CONTEXT = 3  # passages that a question is asked behind


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A place in a document: passages that follow each other, as they stand in the text."""

    document: int
    before: tuple[str, ...]  # ``CONTEXT`` of them
    after: tuple[str, ...]  # at least one, up to three

    @property
    def context(self) -> str:
        return "".join(self.before).rstrip()

    @property
    def gap(self) -> str:
        """The white space between what stands before and what stands after."""
        whole = "".join(self.before)
        return whole[len(whole.rstrip()) :]


def language_of(text: str) -> Language | None:
    """By its letters: Chinese, English or another language of Latin letters, or none of these."""
    letters = _LETTER.findall(text[:4000])
    if not letters:
        return None
    if sum(bool(_CHINESE.match(letter)) for letter in letters) >= 0.3 * len(letters):
        return "zh"
    return "en" if sum(letter.isascii() for letter in letters) >= 0.9 * len(letters) else None


def cut_passages(text: str, language: Language) -> list[str]:
    """Passages that join to the text, but for a short rest: of one or a few sentences each, and
    where a sentence is too long for one, of a part of it.
    """
    least, most = _SIZES[language]
    passages: list[str] = []
    growing = ""
    for sentence in _ENDS[language].findall(text):
        growing += sentence
        while len(growing) > most:
            space = growing.rfind(" ", least, most)
            end = most if space < 0 else space + 1
            passages.append(growing[:end])
            growing = growing[end:]
        if len(growing.strip()) >= least:
            passages.append(growing)
            growing = ""
    return passages


def find_spots(documents: Iterable[str]) -> dict[Language, list[Spot]]:
    """Every place of the documents where a question can be asked, by language."""
    spots: dict[Language, list[Spot]] = {}
    for number, text in enumerate(documents):
        language = language_of(text)
        if language is None:
            continue
        passages = cut_passages(text, language)
        for place in range(CONTEXT, len(passages)):
            spot = Spot(
                document=number,
                before=tuple(passages[place - CONTEXT : place]),
                after=tuple(passages[place : place + 3]),
            )
            spots.setdefault(language, []).append(spot)
    return spots


_LAST_WORD = re.compile(r"(\s+)([A-Za-z][a-z]{2,}|[A-Z]{3,})[.!?:;,\"')\]`]*\s*\Z")
_LAST_CHARACTERS = re.compile("()([\u4e00-\u9fff]{2})[。！？；，、”』」）]*\\s*\\Z")
_WORDS = re.compile("[A-Za-z][a-z]{2,}")
_PAIRS = re.compile("(?=([\u4e00-\u9fff]{2}))")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The last word of a passage, or its last two characters, with what stands before."""

    context: str
    gap: str  # white space before the word
    word: str
    others: tuple[str, ...]  # words, or pairs of characters, of the context, in their order


def find_ending(spot: Spot, language: Language) -> Ending | None:
    """Of the first passage after a spot; None where the word was not met before, so that nobody
    could know it, or where there are no three others.
    """
    text = spot.context + spot.gap + spot.after[0]
    match = (_LAST_WORD if language == "en" else _LAST_CHARACTERS).search(text)
    if match is None:
        return None
    context, word = text[: match.start()], match[2]
    words = dict.fromkeys((_WORDS if language == "en" else _PAIRS).findall(context))
    others = tuple(each for each in words if each.lower() != word.lower())
    if word not in words or len(others) < 3:
        return None
    return Ending(context=context, gap=match[1], word=word, others=others)
