"""The tokenizers that lmscale trains by SentencePiece: exact for every Unicode string.

SentencePiece writes a space as U+2581, and so cannot tell a real U+2581 from a space. Here a real
one is taken out before encoding and written as its three byte pieces, and decoding joins the bytes
that the ids stand for, so that every text comes back as it was. Control pieces such as ``<s>`` are
never found in text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from lmscale.errors import DataError
from lmscale.tokenizer.base import OWN, SPACE_MARK, Tokenizer

STRETCH_CHARS = 256
NEWLINE_STRETCH_CHARS = 4096
# What a model's own normalization would change, in more than one stretch.
PROBE = "\ufb01rst\n\n  \u00bd, \uff21\t \u212b\r\n" * 40
_SPACE_OF_A_WORD = re.compile("(?<! ) ")
_EXACT = (
    "import it, which obeys it (lmscale tokenizer import), train one with lmscale, or one with "
    "byte_fallback=true, normalization_rule_name=identity, add_dummy_prefix=false and "
    "remove_extra_whitespaces=false."
)


class OwnTokenizer(Tokenizer):
    """A trained SentencePiece model with byte fallback which changes no text.

    Which ids are special, the model itself says: it may have no bos or no pad.
    """

    format = OWN

    def __init__(
        self, model: bytes, made_by: dict[str, Any], special_ids: Mapping[str, int] | None = None
    ) -> None:
        """``model`` is a serialized model with byte fallback and eos which changes no text;
        ``DataError`` if not. ``special_ids`` are the model's.
        """
        import sentencepiece

        super().__init__(model, made_by)
        sentencepiece.set_min_log_level(3)  # its errors also come as exceptions
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            marks = [f"<0x{byte:02X}>" for byte in SPACE_MARK.encode()]
            self._mark_ids = [self._processor.piece_to_id(mark) for mark in marks]
            has_bytes = all(map(self._processor.is_byte, self._mark_ids))
        except (RuntimeError, IndexError, UnicodeDecodeError) as error:
            # IndexError: of no pieces at all. The last: of a message about a damaged piece.
            raise DataError(f"Not a SentencePiece model: {error}.") from None
        self.kind = str(made_by.get("kind"))
        self.vocab_size = self._processor.get_piece_size()
        if not has_bytes:
            raise DataError(f"The SentencePiece model has no byte pieces: {_EXACT}")
        self.special_ids = model_special_ids(self._processor)
        if "eos" not in self.special_ids:
            raise DataError(
                "The SentencePiece model has no piece for the end of a document (eos), which every "
                "document in a shard ends with; train it with lmscale."
            )
        if b"".join(map(self._bytes_of, self.encode(PROBE).tolist())) != PROBE.encode():
            raise DataError(
                "The SentencePiece model changes text (newlines, spaces or forms of characters), "
                f"so that none would come back as it was: {_EXACT}"
            )

    def piece(self, token_id: int) -> str:
        return self._processor.id_to_piece(token_id)

    def describe(self) -> dict[str, str]:
        return {"normalizer": "none", "unknown characters": "become byte pieces"}

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(text.split(SPACE_MARK)):
            if number:
                ids += self._mark_ids
            for stretch in cut_before_words(part):
                ids += self._processor.encode(stretch)
        return ids

    def _find_special_ids(self) -> Iterable[int]:
        return find_control_ids(self._processor)

    @cached_property
    def _piece_bytes(self) -> list[bytes]:
        return [self._bytes_of(number) for number in range(self.vocab_size)]

    def _bytes_of(self, number: int) -> bytes:
        is_unknown = self._processor.is_unknown(number)  # which no text is encoded to
        return b"" if is_unknown else sentencepiece_bytes(self._processor, number)


def model_special_ids(processor: Any) -> dict[str, int]:
    """Those that a SentencePiece model names."""
    return {
        name: number
        for name in ("unk", "bos", "eos", "pad")
        if (number := getattr(processor, f"{name}_id")()) >= 0
    }


def find_control_ids(processor: Any) -> Iterable[int]:
    """Of the pieces that a SentencePiece model never finds in text."""
    return filter(processor.is_control, range(processor.get_piece_size()))


def sentencepiece_bytes(processor: Any, number: int) -> bytes:
    """The UTF-8 bytes that a piece of a SentencePiece model stands for."""
    piece = processor.id_to_piece(number)
    if processor.is_control(number):
        return b""
    if processor.is_byte(number):
        return bytes([int(piece[3:5], 16)])  # <0x0A>
    return piece.replace(SPACE_MARK, " ").encode()


def cut_before_words(text: str, *, cuts_lines: bool = True) -> Iterator[str]:
    """The text in stretches of some hundred characters, to be encoded one by one.

    SentencePiece takes time for a text that grows faster than its length: 256 characters at a
    time are 1.5 to 4 times as fast. A piece holds a space only at its beginning or in a run of
    spaces, so none reaches over the place before a word's space: BPE's ids are those of the whole,
    and unigram's differ at most where its float sums over a long text round two cuts to a tie.
    Text without spaces is cut after newlines, seldom, because a piece may reach over those; not
    with ``cuts_lines`` false.
    """
    start = 0
    while len(text) - start > STRETCH_CHARS:
        limit = start + NEWLINE_STRETCH_CHARS if cuts_lines else len(text)
        if word := _SPACE_OF_A_WORD.search(text, start + STRETCH_CHARS, limit):
            end = word.start()
        elif cuts_lines and (newline := text.find("\n", limit)) >= 0:
            end = newline + 1
        else:
            break
        yield text[start:end]
        start = end
    yield text[start:]
