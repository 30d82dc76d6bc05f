"""Records and files that cannot be read: of a kind one line, with the first of them named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lmscale.corpus.encodings import BYTE_ENCODINGS, HEAD_BYTES, find_other_kind, guess_encoding
from lmscale.corpus.text_files import read_pieces
from lmscale.errors import LmscaleError
from lmscale.files.found import FoundFile

NAMED = 3  # places of one kind


class Broken(NamedTuple):
    """One that was not read. ``what`` is its kind, ``detail`` what only this one has."""

    where: str
    what: str
    detail: str = ""


def broken_file(file: FoundFile, problem: str) -> Broken:
    """A file of which ``problem`` says that it cannot be read."""
    where, what = file.shown, problem.removesuffix(".")
    return Broken(where, what.removeprefix(f"{where}: "))


def describe_broken(broken: Iterable[Broken]) -> Iterator[str]:
    """A line for each kind, in the order in which they came."""
    kinds: dict[str, list[Broken]] = {}
    for each in broken:
        kinds.setdefault(each.what, []).append(each)
    for what, group in kinds.items():
        where = ", ".join(each.where for each in group[:NAMED])
        detail = group[0].detail
        if len(group) == 1:
            told = f": {detail}" if detail else ""
        else:
            where += f" and {len(group) - NAMED:,} more" if len(group) > NAMED else ""
            told = f"; the first: {detail}" if detail else ""
        yield f"{where}: {what}{told}."


def describe_encoding(file: FoundFile) -> str:
    """What the beginning of a file that is not of its encoding seems to be, in words, or nothing.

    Nothing where a few bytes of many are wrong: then they are, and not the encoding.
    """
    if file.ending in (".parquet", ".tar"):
        return ""
    try:
        head = b""
        for piece in read_pieces(file):
            head += piece[:HEAD_BYTES]
            if len(head) >= HEAD_BYTES:
                break
    except LmscaleError:
        return ""
    if kind := find_other_kind(head):
        return f"it is {kind} by its first bytes"
    name = guess_encoding(head)
    if name == "utf-8":
        return ""
    if name in BYTE_ENCODINGS:
        return "it may be latin-1 or cp1252, or another encoding of a byte a character"
    if name in ("utf-16", "utf-32"):  # without a mark it would say in which order the bytes are
        return f"the file begins with the mark of {name}"
    return f"it looks like {name}"
