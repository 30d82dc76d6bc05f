"""A ``tokenizer.json``: byte-level BPE, WordPiece, unigram, as the library ``tokenizers`` runs it.

The ids of a text are those of ``Tokenizer.encode(text, add_special_tokens=False)``, with two things
settled: padding, truncation and BPE dropout are off, and the strings of special tokens are text
(``encode_special_tokens``), also where a model would find them in its vocabulary. Added tokens
that are not special are found in text.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lmscale.errors import DataError
from lmscale.files.extras import install_extra
from lmscale.files.strangers import parse_json
from lmscale.tokenizer.base import UNKNOWN_BYTES, Tokenizer, check_special_ids
from lmscale.tokenizer.hf_rules import (
    BYTE_PIECES,
    NFC_LOSS,
    fate_of_unknown,
    find_losses,
    finds_whole_words,
    is_byte_level,
    keep_out_of_text,
    kind_of,
    mark_special,
    name_steps,
    spell_pieces,
    unknown_piece,
)
from lmscale.tokenizer.own import PROBE

MISSING = f"A tokenizer.json needs the package tokenizers: {install_extra('hf')} in the clone."
_UNUSUAL = "\U0001d1a5 \U00010330 \U00020021"  # which few have pieces for
_NOT_ONE = "Not a tokenizer.json of Hugging Face's, or a damaged one"


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the library ``tokenizers``."""

    format = "tokenizers"

    def __init__(
        self, model: bytes, made_by: dict[str, Any], special_ids: Mapping[str, int] | None = None
    ) -> None:
        """``model``: the bytes of the JSON. ``special_ids``: of bos, eos and pad, which the JSON
        does not name. Raises ``DataError`` for bytes that are none, or without the package.
        """
        super().__init__(model, made_by)
        self._tree = parse_tree(model)
        plain = build(self._tree)
        vocabulary = plain.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self._pieces = {number: piece for piece, number in vocabulary.items()}
        unknown = vocabulary.get(unknown_piece(self._tree["model"]) or "")
        own_ids = {} if unknown is None else {"unk": unknown}
        self.kind = kind_of(self._tree)
        self.special_ids = check_special_ids({**own_ids, **(special_ids or {})}, self.vocab_size)
        self._check_roles(vocabulary)
        roles = {self._pieces.get(each, "") for each in self.special_ids.values()} - {""}
        if any(token["content"] in roles and not token["special"] for token in self._added):
            self._tree = mark_special(self._tree, roles)
            plain = build(self._tree)
        self._special_pieces = {token["content"] for token in self._added if token["special"]}
        self._special_pieces |= roles
        self._kept_out = self._find_kept_out(plain)
        self._tokenizer = build(self.rules) if self._kept_out else plain
        self.losses = tuple(find_losses(self._tree, vocabulary))
        if self._counts_bytes and not self._gives_back(PROBE):
            self.losses = (*self.losses, "it changes text in a way of its own")
        self.encode(_UNUSUAL)  # where no piece stands for what is unknown, this says so now

    @property
    def rules(self) -> dict[str, Any]:
        """The JSON by which text gets its ids: it neither pads, truncates nor drops out, and cuts
        text inside what reads like a special piece, where the model would find that.
        """
        return keep_out_of_text(_settle(self._tree), self._kept_out)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """As ``tokenizers`` writes it, where it is not exact."""
        if self._counts_bytes:
            return super().decode(ids)
        no_text = {number for role, number in self.special_ids.items() if role != "unk"}
        kept = [number for number in self._checked(ids) if number not in no_text]
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    def piece(self, token_id: int) -> str:
        return self._pieces.get(token_id, "")

    def describe(self) -> dict[str, str]:
        return {
            "normalizer": name_steps(self._tree, "normalizer"),
            "pre-tokenizer": name_steps(self._tree, "pre_tokenizer"),
            "unknown characters": fate_of_unknown(self._tree, self._pieces.values())
            or "become bytes",
            "added tokens": f"{len(self._added):,}, special: {self._num_special:,}",
        }

    @property
    def is_byte_level(self) -> bool:
        """Whether the letters of a piece stand for bytes."""
        return is_byte_level(self._tree)

    @property
    def _added(self) -> list[dict[str, Any]]:
        return self._tree.get("added_tokens") or []

    @property
    def _num_special(self) -> int:
        return sum(token["special"] for token in self._added)

    @property
    def _counts_bytes(self) -> bool:
        """Also where text is put into NFC: the pieces are then those of that text."""
        return all(loss == NFC_LOSS for loss in self.losses)

    def _encode(self, text: str) -> list[int]:
        return _ids_of(self._tokenizer, text)

    def _encode_special(self, text: str) -> list[int]:
        """As the library finds special tokens, with the spaces that some take beside them; unless
        one is a piece of the model alone, which the library does not look for.
        """
        if {token["content"] for token in self._added}.issuperset(self.special_pieces):
            return _ids_of(self._finding_special, text)
        return super()._encode_special(text)

    @cached_property
    def _finding_special(self) -> Any:
        tokenizer = build(self.rules)
        tokenizer.encode_special_tokens = False
        return tokenizer

    def _find_special_ids(self) -> Iterable[int]:
        return (number for number, piece in self._pieces.items() if piece in self._special_pieces)

    @cached_property
    def _piece_bytes(self) -> list[bytes]:
        spell = spell_pieces(self._tree)
        added = {token["content"] for token in self._added}
        known = {
            number: b""
            if piece in self._special_pieces
            else piece.encode()
            if piece in added
            else spell(piece)
            for number, piece in self._pieces.items()
        }
        if self.unk_id is not None and not self._counts_bytes:
            known[self.unk_id] = UNKNOWN_BYTES
        return [known.get(number, b"") for number in range(self.vocab_size)]

    def _find_kept_out(self, plain: Any) -> list[str]:
        """The special pieces that the model would find in text."""
        tree = self._tree
        kept_out = sorted(self._special_pieces)
        if tree["model"].get("byte_fallback"):
            kept_out += BYTE_PIECES
        if not finds_whole_words(tree):
            spell = spell_pieces(tree)

            def is_found(piece: str) -> bool:
                text = spell(piece).decode(errors="replace")
                found = plain.encode_batch([piece, text, text.strip()], add_special_tokens=False)
                return any(plain.token_to_id(piece) in each.ids for each in found)

            kept_out = list(filter(is_found, kept_out))
        if single := [piece for piece in kept_out if len(piece) == 1 and self._is_in_model(piece)]:
            raise DataError(
                f"The special piece {single[0]!r} is a single character, which lmscale could not "
                "tell from the same character of a text."
            )
        return kept_out

    def _check_roles(self, vocabulary: Mapping[str, int]) -> None:
        """Raise ``DataError`` for ends of a document that other text needs."""
        has_bytes = self._tree["model"].get("byte_fallback")
        unknown = self.unk_id if fate_of_unknown(self._tree, vocabulary) else None
        for role in ("bos", "eos", "pad"):
            number = self.special_ids.get(role)
            piece = "" if number is None else self._pieces.get(number, "")
            is_byte = has_bytes and piece in BYTE_PIECES
            if is_byte or (role != "pad" and number is not None and number == unknown):
                raise DataError(
                    f"{role} cannot be {piece!r}, which text is encoded to. Name another piece: "
                    f"--{role} PIECE."
                )

    def _is_in_model(self, piece: str) -> bool:
        vocabulary = self._tree["model"].get("vocab") or ()
        return piece in vocabulary or any(piece == entry[0] for entry in vocabulary)

    def _gives_back(self, text: str) -> bool:
        wanted = unicodedata.normalize("NFC", text) if self.losses else text
        return self.decode(self.encode(text)) == wanted


def _ids_of(tokenizer: Any, text: str) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:  # the library knows no other
        raise DataError(f"The tokenizer cannot encode a text: {error}.") from None


def parse_tree(model: bytes) -> dict[str, Any]:
    """The JSON of a tokenizer. Raises ``DataError`` for what is none."""
    try:
        tree = parse_json(model)
    except ValueError as error:
        raise DataError(f"{_NOT_ONE}: {error}.") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise DataError(f"{_NOT_ONE}: it has no model.")
    _check_merges(tree["model"])
    return tree


def _check_merges(model: Mapping[str, Any]) -> None:
    """Raise ``DataError`` for a merge that tokenizers (0.23) would cut at the length of a prefix
    that is not there: it ends the process.
    """
    prefix = model.get("continuing_subword_prefix")
    merges = model.get("merges")
    if not prefix or not isinstance(merges, list):
        return
    pairs = (rule.split(" ", 1) if isinstance(rule, str) else rule for rule in merges)
    for pair in pairs:
        if not isinstance(pair, list) or not str(pair[-1:] and pair[-1]).startswith(str(prefix)):
            raise DataError(f"{_NOT_ONE}: a merge goes on without {prefix!r}.")


def build(tree: Mapping[str, Any]) -> Any:
    """The library's object of a tokenizer's JSON, which reads special tokens as text."""
    try:
        tokenizer = import_tokenizers().Tokenizer.from_str(json.dumps(_settle(tree)))
    except DataError:
        raise
    except Exception as error:  # the library knows no other
        raise DataError(f"{_NOT_ONE}: {error}.") from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def _settle(tree: Mapping[str, Any]) -> dict[str, Any]:
    tree = {**tree, "padding": None, "truncation": None}
    if tree["model"].get("dropout"):  # a text must have the same ids every time
        tree["model"] = {**tree["model"], "dropout": None}
    return tree


def import_tokenizers() -> Any:
    """The library. Raises ``DataError`` where it is not installed."""
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
        raise DataError(MISSING) from None
    return tokenizers
