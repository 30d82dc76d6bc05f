"""Text ↔ token ids, exact for every Unicode string.

SentencePiece writes a space as U+2581, and so cannot tell a real U+2581 from a space. Here a real
one is taken out before encoding and written as its three byte pieces, and decoding joins the bytes
that the ids stand for, so that every text comes back as it was. Control pieces such as ``<s>`` are
never found in text.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.errors import DataError
from lmscale.files.atomic import write_bytes, write_json
from lmscale.files.reading import read_plain, reading
from lmscale.files.strangers import parse_json
from lmscale.files.tokenizer_files import (
    KEPT_FOLDER,
    META_NAME,
    MODEL_NAME,
    OLD_META_NAME,
    find_meta,
)

logger = logging.getLogger(__name__)

SPACE_MARK = "\u2581"
STRETCH_CHARS = 256
NEWLINE_STRETCH_CHARS = 4096
# What a model's own normalization would change, in more than one stretch.
_PROBE = "\ufb01rst\n\n  \u00bd, \uff21\t \u212b\r\n" * 40
_SPACE_OF_A_WORD = re.compile("(?<! ) ")


class Tokenizer:
    """A trained SentencePiece model; it crosses to a process as the model's bytes.

    Which ids are special, the model itself says: another program's may have no bos or no pad.
    """

    def __init__(self, model: bytes, made_by: dict[str, Any]) -> None:
        """``model`` is a serialized model with byte fallback and eos which changes no text;
        ``DataError`` if not.
        """
        import sentencepiece

        self.model = model
        self.made_by = made_by
        self.fingerprint = hashlib.sha256(model).hexdigest()
        sentencepiece.set_min_log_level(3)  # its errors also come as exceptions
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            marks = [f"<0x{byte:02X}>" for byte in SPACE_MARK.encode()]
            self._mark_ids = [self._processor.piece_to_id(mark) for mark in marks]
            has_bytes = all(map(self._processor.is_byte, self._mark_ids))
        except (RuntimeError, IndexError) as error:  # IndexError: of no pieces at all
            raise DataError(f"Not a SentencePiece model: {error}.") from None
        self.vocab_size: int = self._processor.get_piece_size()
        if not has_bytes:
            raise DataError("The SentencePiece model has no byte pieces; train it with lmscale.")
        self.special_ids = {
            name: number
            for name in ("unk", "bos", "eos", "pad")
            if (number := getattr(self._processor, f"{name}_id")()) >= 0
        }
        if "eos" not in self.special_ids:
            raise DataError(
                "The SentencePiece model has no piece for the end of a document (eos), which every "
                "document in a shard ends with; train it with lmscale."
            )
        self.eos_id: int = self.special_ids["eos"]
        self.bos_id: int | None = self.special_ids.get("bos")
        self.pad_id: int | None = self.special_ids.get("pad")
        if b"".join(map(self._bytes_of, self.encode(_PROBE).tolist())) != _PROBE.encode():
            raise DataError(
                "The SentencePiece model changes text (newlines, spaces or forms of characters), "
                "so that none would come back as it was; train it with lmscale, or with "
                "normalization_rule_name=identity, add_dummy_prefix=false and "
                "remove_extra_whitespaces=false."
            )

    def __reduce__(self):
        return (Tokenizer, (self.model, self.made_by))

    @property
    def dtype(self) -> np.dtype:
        """The smallest type for the ids: uint16, or uint32 above 65,536 pieces."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, 1-D, without specials. Raises ``DataError`` for a lone surrogate."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"The text holds a lone surrogate at character {error.start:,}, which is not "
                "Unicode text."
            ) from None
        ids: list[int] = []
        for number, part in enumerate(text.split(SPACE_MARK)):
            if number:
                ids += self._mark_ids
            for stretch in cut_before_words(part):
                ids += self._processor.encode(stretch)
        return np.array(ids, dtype=self.dtype)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, exact for what ``encode`` gave; U+FFFD stands for bytes of a model's
        that are not UTF-8. Special ids give nothing.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The UTF-8 bytes of the ids, which may end inside a character. Raises ``DataError``."""
        numbers = np.asarray(ids, dtype=np.int64).reshape(-1)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= self.vocab_size):
            wrong = numbers[(numbers < 0) | (numbers >= self.vocab_size)][0]
            raise DataError(
                f"Token id {wrong} is outside the tokenizer's {self.vocab_size:,} pieces: these "
                "tokens were made with another tokenizer."
            )
        return b"".join(map(self._piece_bytes.__getitem__, numbers.tolist()))

    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: UTF-8 bytes that each id stands for, 0 for special ids; summed over a
        text's ids exactly the text's.
        """
        return np.array([len(piece) for piece in self._piece_bytes], dtype=np.int32)

    def piece(self, token_id: int) -> str:
        """How SentencePiece writes the id, for people: ``▁the``, ``<0x0A>``, ``</s>``."""
        return self._processor.id_to_piece(token_id)

    @cached_property
    def _piece_bytes(self) -> list[bytes]:
        return [self._bytes_of(number) for number in range(self.vocab_size)]

    def _bytes_of(self, number: int) -> bytes:
        processor = self._processor
        piece = processor.id_to_piece(number)
        if processor.is_control(number) or processor.is_unknown(number):
            return b""
        if processor.is_byte(number):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        return piece.replace(SPACE_MARK, " ").encode()


def cut_before_words(text: str) -> Iterator[str]:
    """The text in stretches of some hundred characters, to be encoded one by one.

    SentencePiece takes time for a text that grows faster than its length: 256 characters at a
    time are 1.5 to 4 times as fast. A piece holds a space only at its beginning or in a run of
    spaces, so none reaches over the place before a word's space: BPE's ids are those of the whole,
    and unigram's differ at most where its float sums over a long text round two cuts to a tie.
    Text without spaces is cut after newlines, seldom, because a piece may reach over those.
    """
    start = 0
    while len(text) - start > STRETCH_CHARS:
        limit = start + NEWLINE_STRETCH_CHARS
        if word := _SPACE_OF_A_WORD.search(text, start + STRETCH_CHARS, limit):
            end = word.start()
        elif (newline := text.find("\n", limit)) >= 0:
            end = newline + 1
        else:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def render_meta(tokenizer: Tokenizer) -> dict[str, Any]:
    """What ``meta.json`` says."""
    return {
        "kind": tokenizer.made_by.get("kind"),
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "special_ids": tokenizer.special_ids,
        "made_by": tokenizer.made_by,
    }


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer's two files; the second has the hash of the first, and replaces one of
    lmscale's under the old name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / MODEL_NAME, tokenizer.model)
    write_json(folder / META_NAME, render_meta(tokenizer))
    with suppress(OSError, ValueError):  # no such file, or no JSON
        old = parse_json(read_plain(folder / OLD_META_NAME))
        if isinstance(old, dict) and "made_by" in old:
            (folder / OLD_META_NAME).unlink()


def load_kept_tokenizer(run_folder: Path, elsewhere: str | Path) -> Tokenizer:
    """The tokenizer that a run keeps in its own folder, which may have been copied to another
    machine; where it keeps none, or a damaged one, that of the folder ``elsewhere``.
    """
    if not (run_folder / KEPT_FOLDER).exists():
        return load_tokenizer(elsewhere)
    try:
        return load_tokenizer(run_folder / KEPT_FOLDER)
    except DataError as error:
        try:
            tokenizer = load_tokenizer(elsewhere)
            logger.warning("%s It is taken from %s instead.", error.problems[0], elsewhere)
            return tokenizer
        except DataError as other:
            raise DataError([*error.problems, *other.problems]) from None


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer in a folder. Raises ``DataError`` when it is missing or damaged."""
    folder = Path(folder)
    missing = (
        "there is no tokenizer here. Run `lmscale tokenizer train CONFIG` first, or set "
        "tokenizer.folder."
    )
    again = "Restore it, or train the tokenizer again with --force."
    path = find_meta(folder) or folder / META_NAME
    with reading(path, again, missing=missing):
        meta = parse_json(read_plain(path))
        if path.name == OLD_META_NAME and isinstance(meta, dict) and "added_tokens" in meta:
            raise DataError(
                f"{path} is a tokenizer of Hugging Face's, which lmscale does not read. Name "
                "another tokenizer.folder, and train one there: lmscale tokenizer train CONFIG."
            )
        if not isinstance(meta, dict) or not isinstance(meta.get("made_by"), dict):
            raise ValueError("it is not what lmscale writes")
    with reading(folder / MODEL_NAME, again, missing=missing):
        model = read_plain(folder / MODEL_NAME)
    if hashlib.sha256(model).hexdigest() != meta.get("fingerprint"):
        raise DataError(
            f"{folder / MODEL_NAME}: its sha256 is not the fingerprint in {path.name}: one of the "
            f"two is damaged or from another tokenizer. {again}"
        )
    try:
        return Tokenizer(model, meta["made_by"])
    except DataError as error:
        raise DataError(f"{folder / MODEL_NAME}: {error} {again}") from None
