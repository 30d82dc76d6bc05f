"""Ids as they come → text that never breaks a character."""

from __future__ import annotations

import codecs

from lmscale.tokenizer import Tokenizer


class TextStream:
    """Turns ids, one by one, into pieces of text whose concatenation is their decoded text.

    A character may take up to four byte tokens; it is held back until complete. Bytes that
    cannot become a character any more are U+FFFD, as in ``Tokenizer.decode``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The text completed by ``token``; often empty inside a character."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """The rest of the text: U+FFFD for an unfinished character, else empty."""
        return self._decoder.decode(b"", final=True)
