"""A SentencePiece model → the tree of a ``tokenizer.json`` which gives the same ids.

One that lmscale trained writes a real U+2581 as three bytes. So its pieces are written here with
plain spaces: no normalizer is needed, and U+2581 is in no piece. Another program's takes U+2581
for a space, and so does its tree.

BPE gives the same ids. Unigram differs where two cuts of a text have the same score, of which the
two libraries may choose another; the text is the same.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lmscale.errors import DataError

Tree = dict[str, Any]
_MARK = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_UNIGRAM, _BPE = 1, 2


class _Piece(NamedTuple):
    text: str
    score: float
    kind: int


def render_sentencepiece(model: bytes, *, is_own: bool) -> Tree:
    """The whole file, without added ids and without what stands around a text.

    ``is_own``: it changes no text, and bytes stand for U+2581. Raises ``DataError`` for a model of
    words or characters, which the file cannot say.
    """
    proto = parse_sentencepiece(model)
    pieces = [
        _Piece(each.piece.replace(_MARK, " ") if is_own else each.piece, each.score, each.type)
        for each in proto.pieces
    ]
    if len({piece.text for piece in pieces}) < len(pieces):
        raise DataError("Two of the tokenizer's pieces read alike once U+2581 is a space.")
    kind = proto.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE):
        raise DataError(
            "The tokenizer is a SentencePiece model of words or characters, which a tokenizer.json "
            "cannot be; it can be bpe or unigram."
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*_render_added(proto, pieces, is_own)],
        "normalizer": None if is_own else _sequence("normalizers", _render_normalizers(proto)),
        "pre_tokenizer": _sequence("pretokenizers", _render_cuts(proto, pieces)),
        "post_processor": None,
        "decoder": _sequence("decoders", _render_decoders(proto, is_own)),
        "model": (_render_unigram if kind == _UNIGRAM else _render_bpe)(pieces),
    }


def parse_sentencepiece(model: bytes) -> Any:
    """The model as SentencePiece's own ``ModelProto``."""
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    proto = schema.ModelProto()
    proto.ParseFromString(model)
    return proto


def render_added_token(number: int, content: str) -> Tree:
    """A special id, found in text, if at all, before the text is changed in any way."""
    at_edges = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **at_edges, "special": True}


def _render_added(proto: Any, pieces: Sequence[_Piece], is_own: bool) -> Iterator[Tree]:
    """Special pieces, and those that a user has defined, which are found wherever they stand in a
    text whose spaces are U+2581 already.
    """
    spec = proto.normalizer_spec
    for number, piece in enumerate(pieces):
        token = render_added_token(number, piece.text)
        if piece.kind in (_UNKNOWN, _CONTROL):
            yield token
        elif piece.kind == _USER_DEFINED and (is_own or " " not in piece.text):
            is_late = not is_own and not spec.remove_extra_whitespaces
            yield {**token, "special": False, "normalized": is_late}


def _render_bpe(pieces: Sequence[_Piece]) -> Tree:
    has_bytes = any(piece.kind == _BYTE for piece in pieces)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(piece.text for piece in pieces if piece.kind == _UNKNOWN),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": not has_bytes,  # SentencePiece makes one of some in a row
        "byte_fallback": has_bytes,
        "ignore_merges": False,
        "vocab": {piece.text: number for number, piece in enumerate(pieces)},
        "merges": _find_merges(pieces),
    }


def _find_merges(pieces: Sequence[_Piece]) -> list[list[str]]:
    """Every way to put a piece together from two others, the best score first.

    SentencePiece merges any two neighbours whose join is a piece, best score first, leftmost first.
    The file cannot say that two ways are alike; where both are open, as in a run of spaces, the
    leftmost is the one whose left half has been put together already.
    """
    mergeable = {piece.text for piece in pieces if piece.kind == _NORMAL}
    ways = []
    for piece in pieces:
        if piece.kind == _NORMAL:
            halves = [(piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text))]
            ways += [
                (-piece.score, -len(left), [left, right])
                for left, right in halves
                if left in mergeable and right in mergeable
            ]
    return [pair for *_, pair in sorted(ways)]


def _render_unigram(pieces: Sequence[_Piece]) -> Tree:
    return {
        "type": "Unigram",
        "unk_id": next(number for number, piece in enumerate(pieces) if piece.kind == _UNKNOWN),
        "vocab": [[piece.text, piece.score] for piece in pieces],
        "byte_fallback": any(piece.kind == _BYTE for piece in pieces),
    }


def _render_cuts(proto: Any, pieces: Sequence[_Piece]) -> Iterator[Tree]:
    if _has_late_prefix(proto):
        # Two steps, as one would put nothing before a text that begins with a space, U+2581 by now.
        for mark, where in ((" ", "first"), (_MARK, "never")):
            step = {"type": "Metaspace", "replacement": mark, "prepend_scheme": where}
            yield {**step, "split": False}
    if proto.trainer_spec.model_type == _UNIGRAM:
        pattern = {"Regex": "|".join(_patterns_never_found(proto, pieces))}
        split = {"type": "Split", "pattern": pattern, "invert": False}
        yield {**split, "behavior": "MergedWithPrevious"}


def _patterns_never_found(proto: Any, pieces: Sequence[_Piece]) -> Iterator[str]:
    """The first parts of what reads like a piece that SentencePiece never finds in text, such as
    ``</s>`` and ``<0x0A>``. Text is cut behind them, as unigram there matches every entry of its
    vocabulary.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def cut(text: str) -> int:
        """Where SentencePiece's own first piece of it ends, so that the cut changes none."""
        first = next(iter(processor.encode(text, out_type=str)), "").lstrip(_MARK)
        return len(first) if text.startswith(first) and 0 < len(first) < len(text) else 1

    for text, _, kind in pieces:
        if kind in (_UNKNOWN, _CONTROL) and len(text) > 1:
            yield f"{re.escape(text[: cut(text)])}(?={re.escape(text[cut(text) :])})"
    if any(piece.kind == _BYTE for piece in pieces):
        head = "<0x"[: min(cut("<0x0A>"), 3)]
        yield f"{head}(?={'<0x'[len(head) :]}[0-9A-F]{{2}}>)"


def _render_normalizers(proto: Any) -> Iterator[Tree]:
    """What another program's model does with a text before it is cut into pieces."""
    spec = proto.normalizer_spec
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        yield {"type": "Precompiled", "precompiled_charsmap": charsmap}
    if spec.remove_extra_whitespaces:  # at the end also U+2581, which then is one
        for pattern, content in ((r"\A +", ""), (" {2,}", " "), (rf"[ {_MARK}]+\z", "")):
            yield {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
    if spec.add_dummy_prefix and not _has_late_prefix(proto):
        yield {"type": "Prepend", "prepend": " "}
    if spec.escape_whitespaces:
        yield {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}


def _has_late_prefix(proto: Any) -> bool:
    """Whether the space before a text is put there after it was cut at pieces that a user has
    defined, since only the first part of it has one. A text that begins with such a piece gets
    none.
    """
    is_user_defined = (piece.type == _USER_DEFINED for piece in proto.pieces)
    return proto.normalizer_spec.add_dummy_prefix and any(is_user_defined)


def _render_decoders(proto: Any, is_own: bool) -> Iterator[Tree]:
    spec = proto.normalizer_spec
    if not is_own:
        yield {"type": "Replace", "pattern": {"String": _MARK}, "content": " "}
    yield {"type": "ByteFallback"}
    yield {"type": "Fuse"}
    if not is_own and (spec.add_dummy_prefix or spec.remove_extra_whitespaces):
        start = 2**20 if spec.remove_extra_whitespaces else 1  # of that, as many as there are
        yield {"type": "Strip", "content": " ", "start": start, "stop": 0}


def _sequence(name: str, parts: Iterator[Tree]) -> Tree | None:
    found = [*parts]
    return {"type": "Sequence", name: found} if found else None
