# Shape letters: V vocabulary.
"""Which tokens may be masked, and which begin a word: tables by id, made of the run's tokenizer."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np

from lmscale.config import RunConfig
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.codec import load_kept_tokenizer

_ENDS = tuple(".?!…。？！")
_CONTINUATION_BYTES = range(0x80, 0xC0)  # of a character's UTF-8, all but its first


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenKinds:
    """Tables over the tokenizer's ids."""

    is_special: np.ndarray
    """bool: stands for no text, such as bos, eos, pad and unk."""
    begins_word: np.ndarray
    """bool: does not go on with the word of the token before it. Spaces, punctuation and every
    ideograph begin one (as in BERT's own splitting); letters, marks and digits after one another
    are of one word.
    """
    ends_sentence: np.ndarray
    """bool: ends in a full stop, a question mark or an exclamation mark of any script."""

    @property
    def vocab_size(self) -> int:
        return len(self.is_special)


def token_kinds(tokenizer: Tokenizer) -> TokenKinds:
    texts = [tokenizer.decode_bytes([number]) for number in range(tokenizer.vocab_size)]
    return TokenKinds(
        is_special=~tokenizer.is_text(),
        begins_word=np.array([begins_word(text) for text in texts]),
        ends_sentence=np.array([text.decode(errors="replace").endswith(_ENDS) for text in texts]),
    )


def load_token_kinds(config: RunConfig) -> TokenKinds:
    """Those of the tokenizer that the run keeps, or begins with. Raises ``DataError``."""
    return token_kinds(load_kept_tokenizer(config.folder, config.tokenizer.folder))


def begins_word(text: bytes) -> bool:
    """Whether a token of these bytes does not go on with the word before it."""
    if not text or text[0] in _CONTINUATION_BYTES:
        return not text
    first = text.decode("utf-8", errors="replace")[0]
    goes_on = unicodedata.category(first)[0] in "LMN"
    is_hangul = "\uac00" <= first <= "\ud7a3"  # as wide as ideographs, but written with spaces
    is_ideograph = unicodedata.east_asian_width(first) in "WF" and not is_hangul
    return is_ideograph or not goes_on
