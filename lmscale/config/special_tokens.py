"""Special tokens that a tokenizer is trained with: a team's own, and reserved ones for later.

Their ids follow those of the ends of a document, in the order of the list, the reserved ones last.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from lmscale.config.base import show

RESERVED = "<|reserved_special_token_{}|>"  # as Llama 3's
MAX_RESERVED = 10_000
NUM_BYTES = 256
BYTE_BPE_PIECES = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "pad": "<|pad|>"}
SENTENCEPIECE_PIECES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
_RESERVED = re.compile(re.escape(RESERVED).replace(r"\{\}", r"\d+"))
_SPACE_MARK = "\u2581"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_UNSEEN = {"Cc": "control", "Cf": "format", "Cs": "surrogate", "Zl": "line", "Zp": "paragraph"}


def name_special_tokens(own: Sequence[str], num_reserved: int) -> tuple[str, ...]:
    """All of them in the order of their ids."""
    return (*own, *map(RESERVED.format, range(num_reserved)))


def is_reserved(piece: str) -> bool:
    """Whether it is one for later, of lmscale's or of another program's."""
    return _RESERVED.fullmatch(piece) is not None


def find_special_token_problems(
    own: Sequence[str], num_reserved: int, *, kind: str, vocab_size: int
) -> Iterator[str]:
    """What is wrong with the section ``tokenizer``'s lists, for a tokenizer of ``kind``."""
    key = "special_tokens"
    ends = BYTE_BPE_PIECES if kind == "byte_bpe" else SENTENCEPIECE_PIECES
    for place, piece in enumerate(own):
        for problem in _find_piece_problems(piece, kind, tuple(ends.values())):
            yield f"{key}[{place}] = {show(piece)} {problem}"
    for piece, times in Counter(name_special_tokens(own, num_reserved)).items():
        if times > 1 and piece in own[own.index(piece) + 1 :]:
            yield f"{key} has {show(piece)} {own.count(piece)} times; give it once"
        elif times > 1:
            yield (
                f"{key} has {show(piece)}, which reserved_tokens = {num_reserved} makes, "
                "too; leave it out"
            )
    taken = NUM_BYTES + len(ends) + len(own) + num_reserved
    if (own or num_reserved) and taken >= vocab_size:
        yield (
            f"vocab_size = {vocab_size} leaves no piece for text: {NUM_BYTES} bytes, "
            f"{len(ends)} ends of documents and {len(own) + num_reserved} special tokens take "
            f"{taken}. Raise it, or name fewer"
        )


def _find_piece_problems(piece: str, kind: str, ends: Sequence[str]) -> Iterator[str]:
    if not piece:
        yield "is empty; give the token's text, such as <|im_start|>, or leave it out"
        return
    if piece != piece.strip():
        yield "has white space at an end; leave that out"
    unseen = [each for each in piece if unicodedata.category(each) in _UNSEEN]
    if unseen:
        name = _UNSEEN[unicodedata.category(unseen[0])]
        yield f"holds U+{ord(unseen[0]):04X}, a {name} character, which nobody sees; leave it out"
    if not unicodedata.is_normalized("NFC", piece):
        composed = ascii(unicodedata.normalize("NFC", piece))  # which would be seen as the same
        yield f"({ascii(piece)}) is not in Unicode's form NFC; write {composed}"
    if len(piece) == 1:
        yield "is a single character, which text needs; give at least two"
    if piece in ends:
        yield "is a piece that every tokenizer of this kind has; leave it out"
    if kind != "byte_bpe" and _BYTE_PIECE.fullmatch(piece):
        yield "is how the tokenizer writes a byte; give another text"
    if kind != "byte_bpe" and _SPACE_MARK in piece:
        yield (
            "holds U+2581, which is how SentencePiece writes a space; give another text, or train "
            "tokenizer.kind: byte_bpe"
        )
