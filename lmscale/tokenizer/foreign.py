"""Any SentencePiece model, as it says itself: its normalizer, its leading space, its special ids.

The ids of a text are those that SentencePiece gives for the whole text. What of the text does not
come back, ``losses`` names; a real U+2581 never does, as SentencePiece takes it for a space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lmscale.errors import DataError
from lmscale.tokenizer.base import SPACE_MARK, UNKNOWN_BYTES, Tokenizer, check_special_ids
from lmscale.tokenizer.own import (
    cut_before_words,
    find_control_ids,
    model_special_ids,
    sentencepiece_bytes,
)

_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # types of pieces
_IN_TEXT = (_NORMAL, _USER_DEFINED, _UNUSED)
# A piece that cannot reach over the place before the first of some spaces behind a word.
_WORD_PIECE = re.compile(f"{SPACE_MARK}*[^{SPACE_MARK}]*")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model of another program's, obeyed in all that it says."""

    format = "sentencepiece"

    def __init__(
        self, model: bytes, made_by: dict[str, Any], special_ids: Mapping[str, int] | None = None
    ) -> None:
        """``special_ids`` in place of those that the model names; in ``self.model`` their pieces
        are control pieces, which no text is encoded to. Raises ``DataError`` for bytes that are no
        model, and for special ids that text needs.
        """
        import sentencepiece
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        super().__init__(model, made_by)
        sentencepiece.set_min_log_level(3)  # its errors also come as exceptions
        new_proto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
        proto = new_proto()
        try:
            proto.ParseFromString(model)
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size = self._processor.get_piece_size()
            own_ids = model_special_ids(self._processor)
            for number in range(self.vocab_size):
                self._processor.id_to_piece(number)
        except UnicodeDecodeError:  # of a piece, or of SentencePiece's own message about it
            raise DataError("A damaged SentencePiece model: a piece is not UTF-8.") from None
        except (DecodeError, RuntimeError, IndexError) as error:
            raise DataError(f"Not a SentencePiece model, or a damaged one: {error}.") from None
        if not self.vocab_size:
            raise DataError("Not a SentencePiece model: it has no pieces.")
        self.kind = _KINDS.get(proto.trainer_spec.model_type, "unknown")
        self.special_ids = check_special_ids(
            own_ids if special_ids is None else special_ids, self.vocab_size
        )
        self._spec = proto.normalizer_spec
        self._has_bytes = all(
            self._processor.is_byte(self._processor.piece_to_id(f"<0x{byte:02X}>"))
            for byte in range(256)
        )
        self._check_roles()
        if text_ids := [each for each in self._no_text if proto.pieces[each].type in _IN_TEXT]:
            for each in text_ids:
                proto.pieces[each].type = _CONTROL
            self.model = proto.SerializeToString()
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        self.losses = tuple(self._find_losses())
        self._rest: Any = None  # for the stretches behind the first
        self._cuts_lines = False
        if self._may_be_cut(proto):
            pieces = [each.piece for each in proto.pieces if each.type in (_NORMAL, _USER_DEFINED)]
            self._cuts_lines = not any("\n" in piece for piece in pieces)
            rest = new_proto()
            rest.CopyFrom(proto)
            rest.normalizer_spec.add_dummy_prefix = False
            self._rest = sentencepiece.SentencePieceProcessor(model_proto=rest.SerializeToString())

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text as SentencePiece gives it."""
        return self._processor.decode(self._checked(ids))

    def piece(self, token_id: int) -> str:
        return self._processor.id_to_piece(token_id)

    def find_piece(self, piece: str) -> int | None:
        """The id of a piece, as it is written."""
        number = self._processor.piece_to_id(piece)
        return number if self._processor.id_to_piece(number) == piece else None

    @property
    def control_pieces(self) -> list[str]:
        """Those that are never found in text."""
        return [self.piece(number) for number in self._find_special_ids()]

    def describe(self) -> dict[str, str]:
        spec = self._spec
        rest = "become byte pieces" if self._has_bytes else f"become {self._unknown_piece}"
        spaces = "runs become one, those at the ends none"
        return {
            "normalizer": spec.name or ("none" if self.keeps_characters else "of its own"),
            "white space": spaces if spec.remove_extra_whitespaces else "kept",
            "space before a text": "yes" if spec.add_dummy_prefix else "no",
            "unknown characters": rest,
        }

    def _encode(self, text: str) -> list[int]:
        if self._rest is None:
            return self._processor.encode(text)
        stretches = cut_before_words(text.replace(SPACE_MARK, " "), cuts_lines=self._cuts_lines)
        ids: list[int] = self._processor.encode(next(stretches))
        for stretch in stretches:
            ids += self._rest.encode(stretch)
        return ids

    def _find_special_ids(self) -> Iterable[int]:
        return find_control_ids(self._processor)

    @cached_property
    def _piece_bytes(self) -> list[bytes]:
        return [
            UNKNOWN_BYTES
            if self._processor.is_unknown(number) and not self._has_bytes
            else b""
            if self._processor.is_unknown(number) or number in self._no_text
            else sentencepiece_bytes(self._processor, number)
            for number in range(self.vocab_size)
        ]

    @property
    def _no_text(self) -> set[int]:
        return {number for name, number in self.special_ids.items() if name != "unk"}

    def _check_roles(self) -> None:
        """Raise ``DataError`` for ends of a document that other text needs."""
        for role in ("bos", "eos", "pad"):
            number = self.special_ids.get(role)
            if number is None:
                continue
            is_unknown = self._processor.is_unknown(number) and not self._has_bytes
            if self._processor.is_byte(number) or (is_unknown and role != "pad"):
                raise DataError(
                    f"{role} cannot be {self.piece(number)!r}, which text is encoded to. Name "
                    f"another piece: --{role} PIECE."
                )

    @property
    def _unknown_piece(self) -> str:
        return self.piece(self._processor.unk_id())

    @property
    def keeps_characters(self) -> bool:
        """Whether its normalizer leaves forms of characters as they are."""
        return not self._spec.precompiled_charsmap

    def _find_losses(self) -> Iterator[str]:
        if not self.keeps_characters:
            name = self._spec.name or "its own"
            yield f"its normalizer ({name}) changes forms of characters"
        if self._spec.remove_extra_whitespaces:
            yield "white space at the ends and in runs is dropped"
        if not self._has_bytes:
            yield f"unknown characters become {self._unknown_piece}"
        yield "a real U+2581 becomes a space"

    def _may_be_cut(self, proto: Any) -> bool:
        """Whether stretches provably have the ids of the whole: BPE merges neighbours only, and no
        piece reaches over a cut. Unigram's float sums may round otherwise over a long text, and
        unused pieces are taken apart by what was merged anywhere.
        """
        spec = self._spec
        return (
            self.kind == "bpe"
            and self.keeps_characters
            and spec.escape_whitespaces
            and not spec.remove_extra_whitespaces
            and not proto.trainer_spec.treat_whitespace_as_suffix
            and not any(piece.type == _UNUSED for piece in proto.pieces)
            and all(
                _WORD_PIECE.fullmatch(each.piece)
                for each in proto.pieces
                if each.type in (_NORMAL, _USER_DEFINED)
            )
        )
