"""What every tokenizer is to the rest of lmscale: text ↔ ids, and what of a text comes back."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lmscale.errors import DataError
from lmscale.tokenizer.names_in_text import split_at_names

SPACE_MARK = "\u2581"  # how SentencePiece writes a space
UNKNOWN_BYTES = "\ufffd".encode()  # what stands for text that a tokenizer has no piece for
SPLITS = "split_special_tokens"  # of ``made_by``: so the settings of one that came in said it
OWN = "lmscale"  # the format of those that lmscale trains by SentencePiece
ROLES = ("unk", "bos", "eos", "pad")


class Tokenizer(ABC):
    """A vocabulary with its rules; it crosses to a process as the bytes of its model.

    Whether it is exact, ``losses`` says: what of a text decoding does not give back, empty where
    every Unicode text comes back as it was.
    """

    format: ClassVar[str]
    """Who made the rules: ``lmscale``, ``sentencepiece`` or ``tokenizers``."""
    kind: str
    """``bpe``, ``unigram``, ``byte_bpe``, ``wordpiece``, …"""
    vocab_size: int
    losses: tuple[str, ...] = ()
    special_ids: dict[str, int]
    """By ``ROLES``, those that it has."""

    def __init__(self, model: bytes, made_by: dict[str, Any]) -> None:
        self.model = model
        self.made_by = made_by

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.model, self.made_by, self.special_ids))

    @cached_property
    def fingerprint(self) -> str:
        """What shards and checkpoints know the tokenizer by (``fingerprint_of``)."""
        return fingerprint_of(self.format, self.model, self.special_ids)

    @property
    def is_exact(self) -> bool:
        """Whether ``decode(encode(text))`` is the text, for every text."""
        return not self.losses

    @property
    def eos_id(self) -> int:
        return self.special_ids["eos"]

    @property
    def bos_id(self) -> int | None:
        return self.special_ids.get("bos")

    @property
    def pad_id(self) -> int | None:
        return self.special_ids.get("pad")

    @property
    def unk_id(self) -> int | None:
        return self.special_ids.get("unk")

    @cached_property
    def special_pieces(self) -> dict[str, int]:
        """Piece → id, of all that no text becomes unless it is meant to: those of ``special_ids``
        and special tokens beside them, in the order of their ids.
        """
        numbers = sorted({*self.special_ids.values(), *self._find_special_ids()})
        return {self.piece(number): number for number in numbers}

    @property
    def special_tokens(self) -> dict[str, int]:
        """Those of ``special_pieces`` that have no part in every document: a team's own, such as
        ``<|im_start|>``, reserved ones, and others' marks.
        """
        roles = {*self.special_ids.values()}
        return {piece: n for piece, n in self.special_pieces.items() if n not in roles}

    @property
    def dtype(self) -> np.dtype:
        """The smallest type for the ids: uint16, or uint32 above 65,536 pieces."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def encode(self, text: str, *, special: bool = False) -> np.ndarray:
        """The ids of a text, 1-D, without specials: what reads like one, such as ``</s>``, is text.

        With ``special`` it is the special token, and what stands between two is a text by itself:
        for what a person or a template has written, never for data. Raises ``DataError`` for a
        lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"The text holds a lone surrogate at character {error.start:,}, which is not "
                "Unicode text."
            ) from None
        ids = self._encode_special(text) if special else self._encode(text)
        return np.array(ids, dtype=self.dtype)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, of an exact tokenizer exact for what ``encode`` gave; U+FFFD stands
        for bytes of a model's that are not UTF-8. Special ids give nothing.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(
        self, ids: Sequence[int] | np.ndarray, *, shows_special: bool = False
    ) -> bytes:
        """The UTF-8 bytes of the ids, which may end inside a character; with ``shows_special`` a
        special token gives how it is written. Raises ``DataError``.
        """
        pieces = self._shown_bytes if shows_special else self._piece_bytes
        return b"".join(map(pieces.__getitem__, self._checked(ids)))

    def token_bytes(self) -> np.ndarray | None:
        """int32 [vocab_size]: UTF-8 bytes that each id stands for, 0 for special ids; summed over a
        text's ids exactly the text's. None: a tokenizer that is not exact cannot say.
        """
        return self._token_bytes if self._counts_bytes else None

    def is_text(self) -> np.ndarray:
        """bool [vocab_size]: stands for text, so neither for the beginning or end of one, nor for
        nothing. The unknown token counts where text is encoded to it.
        """
        return np.array([bool(piece) for piece in self._piece_bytes])

    def is_writable(self) -> np.ndarray:
        """bool [vocab_size]: stands for text that a model may write, so not for an unknown one."""
        writable = self.is_text()
        if self.unk_id is not None:
            writable[self.unk_id] = False
        return writable

    @abstractmethod
    def piece(self, token_id: int) -> str:
        """How the tokenizer's library writes the id, for people: ``▁the``, ``<0x0A>``, ``</s>``."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What it does with text, name by name, for people."""

    @cached_property
    def _token_bytes(self) -> np.ndarray:
        return np.array([len(piece) for piece in self._piece_bytes], dtype=np.int32)

    @property
    def _counts_bytes(self) -> bool:
        """Whether the bytes of the pieces add up to those of a text."""
        return self.is_exact

    @cached_property
    def _shown_bytes(self) -> list[bytes]:
        names = {number: piece.encode() for piece, number in self.special_pieces.items()}
        return [names.get(number, text) for number, text in enumerate(self._piece_bytes)]

    def _encode_special(self, text: str) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(split_at_names(text, self.special_pieces)):
            if place % 2:
                ids.append(self.special_pieces[part])
            elif part:
                ids += self._encode(part)
        return ids

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """The ids of a text without lone surrogates."""

    @abstractmethod
    def _find_special_ids(self) -> Iterable[int]:
        """Of pieces that are never found in text, as the model says."""

    @cached_property
    @abstractmethod
    def _piece_bytes(self) -> list[bytes]:
        """What each id stands for."""

    def _checked(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        numbers = np.asarray(ids, dtype=np.int64).reshape(-1)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= self.vocab_size):
            wrong = numbers[(numbers < 0) | (numbers >= self.vocab_size)][0]
            raise DataError(
                f"Token id {wrong} is outside the tokenizer's {self.vocab_size:,} pieces: these "
                "tokens were made with another tokenizer."
            )
        return numbers.tolist()


def fingerprint_of(format: str, model: bytes, special_ids: Mapping[str, int]) -> str:
    """sha256 over all that decides an id: of lmscale's own tokenizers, the model; of others, also
    the special ids, which somebody chose.
    """
    if format == OWN:
        return hashlib.sha256(model).hexdigest()
    head = json.dumps([format, special_ids], sort_keys=True).encode()
    return hashlib.sha256(head + b"\0" + model).hexdigest()


def check_special_ids(special_ids: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """Raises ``DataError`` for what is no id of the vocabulary, or has no such part in a text."""
    wrong = [
        f"{name} = {value}"
        for name, value in special_ids.items()
        if name not in ROLES or type(value) is not int or not 0 <= value < vocab_size
    ]
    if wrong:
        raise DataError(
            f"The tokenizer has {vocab_size:,} pieces, which these special ids do not fit: "
            f"{', '.join(wrong)}."
        )
    return {name: special_ids[name] for name in ROLES if name in special_ids}
