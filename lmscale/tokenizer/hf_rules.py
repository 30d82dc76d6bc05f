"""What a ``tokenizer.json`` does with text, read off its parts; pure functions over its JSON.

normalizer → pre_tokenizer → model → ids        "Sequence" parts hold others
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmscale.tokenizer.base import SPACE_MARK
from lmscale.tokenizer.names_in_text import pattern_inside

NFC_LOSS = "text comes back in Unicode's form NFC"
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_LISTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
_KEEPING_STEPS = ("Split", "Digits", "Punctuation", "ByteLevel", "UnicodeScripts", "FixedLength")
_WHOLE_WORDS = ("WordPiece", "WordLevel", "Unigram")  # every entry of these is found in text


def parts_of(tree: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The steps of ``normalizer``, ``pre_tokenizer`` or ``decoder``, in order."""

    def flatten(part: Any) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict):
            if part.get("type") == "Sequence":
                for each in part.get(_LISTS[name]) or ():
                    yield from flatten(each)
            else:
                yield part

    return list(flatten(tree.get(name)))


def vocabulary_of(tree: Mapping[str, Any]) -> dict[str, int]:
    """Piece → id, as far as the JSON is one of a tokenizer: the library judges that."""
    entries = tree["model"].get("vocab")
    if isinstance(entries, list):  # of Unigram: pieces with their scores
        entries = {each[0]: n for n, each in enumerate(entries) if isinstance(each, list) and each}
    added = tree.get("added_tokens")
    tokens = [each for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    entries = entries if isinstance(entries, dict) else {}
    return {**entries, **{token.get("content", ""): token.get("id", -1) for token in tokens}}


def is_byte_level(tree: Mapping[str, Any]) -> bool:
    """Whether its pieces are written in GPT-2's letters for bytes."""
    steps = [*parts_of(tree, "normalizer"), *parts_of(tree, "pre_tokenizer")]
    return any(step.get("type") == "ByteLevel" for step in steps)


def kind_of(tree: Mapping[str, Any]) -> str:
    name = str(tree["model"].get("type", "BPE"))
    known = {"BPE": "bpe", "Unigram": "unigram", "WordPiece": "wordpiece", "WordLevel": "word"}
    return "byte_bpe" if name == "BPE" and is_byte_level(tree) else known.get(name, name.lower())


def name_steps(tree: Mapping[str, Any], name: str) -> str:
    """The names of the steps, for people."""
    return " → ".join(str(step.get("type")) for step in parts_of(tree, name)) or "none"


def byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: itself where it can be seen, else a letter from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in seen)
    return {
        **{chr(byte): byte for byte in seen},
        **{chr(0x100 + number): byte for number, byte in enumerate(others)},
    }


def find_losses(tree: Mapping[str, Any], vocabulary: Iterable[str]) -> list[str]:
    """What of a text does not come back; empty where all does."""
    found = [*_normalizer_losses(tree), *_splitting_losses(tree)]
    if fate := fate_of_unknown(tree, vocabulary):
        found.append(f"unknown characters {fate}")
    model = tree["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        found.append("white space between words is written anew")
    for token in tree.get("added_tokens") or ():
        if not token["special"] and (token.get("lstrip") or token.get("rstrip")):
            found.append("white space beside added tokens is dropped")
    return list(dict.fromkeys(found))


def _normalizer_losses(tree: Mapping[str, Any]) -> Iterator[str]:
    for step in parts_of(tree, "normalizer"):
        name = step.get("type")
        if name == "NFC":
            yield NFC_LOSS
        elif name == "Replace" and _replaces_spaces(step):
            yield f"a real U+{ord(SPACE_MARK):04X} becomes a space"
        elif name not in ("ByteLevel", "Prepend"):
            yield f"its normalizer ({name}) changes text"


def _splitting_losses(tree: Mapping[str, Any]) -> Iterator[str]:
    for step in parts_of(tree, "pre_tokenizer"):
        name = step.get("type")
        if name == "Metaspace":
            yield f"a real {_code_point(step)} becomes a space"
        elif name not in _KEEPING_STEPS or step.get("behavior") == "Removed":
            yield f"its pre-tokenizer ({name}) drops white space or other separators"
        if name == "ByteLevel" and step.get("add_prefix_space", True):
            yield "a space is put before a text"


def fate_of_unknown(tree: Mapping[str, Any], vocabulary: Iterable[str]) -> str:
    """What becomes of characters that no piece holds; empty: they become bytes."""
    needed = byte_letters() if is_byte_level(tree) else BYTE_PIECES
    has_bytes = is_byte_level(tree) or tree["model"].get("byte_fallback")
    if has_bytes and frozenset(vocabulary).issuperset(needed):
        return ""
    unknown = unknown_piece(tree["model"])
    return f"become {unknown}" if unknown else "are dropped"


def unknown_piece(model: Mapping[str, Any]) -> str | None:
    if model.get("type") == "Unigram":
        number, entries = model.get("unk_id"), model.get("vocab") or ()
        return entries[number][0] if isinstance(number, int) and number < len(entries) else None
    return model.get("unk_token")


def spell_pieces(tree: Mapping[str, Any]) -> Callable[[str], bytes]:
    """How the UTF-8 bytes that a piece stands for are found from how it is written."""
    model = tree["model"]
    prefix, suffix = (
        model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix")
    )
    letters = byte_letters()
    marks = _space_marks(tree)
    byte_level, has_bytes = is_byte_level(tree), bool(model.get("byte_fallback"))

    def spell(piece: str) -> bytes:
        if byte_level:
            return b"".join(
                bytes([letters[each]]) if each in letters else each.encode() for each in piece
            )
        if has_bytes and piece in _BYTE_OF:
            return bytes([_BYTE_OF[piece]])
        for mark in marks:
            piece = piece.replace(mark, " ")
        if prefix:
            piece = piece.removeprefix(prefix) if piece.startswith(prefix) else f" {piece}"
        if suffix and piece.endswith(suffix):
            piece = piece.removesuffix(suffix) + " "
        return piece.encode()

    return spell


def keep_out_of_text(tree: Mapping[str, Any], pieces: Sequence[str]) -> dict[str, Any]:
    """The same with text cut inside what reads like one of ``pieces``, such as ``</s>``, so that
    none of them is found in it.
    """
    pattern = pattern_inside(pieces)
    if not pattern:
        return dict(tree)
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "invert": False}
    steps = [*parts_of(tree, "pre_tokenizer"), {**cut, "behavior": "MergedWithPrevious"}]
    return {**tree, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def mark_special(tree: Mapping[str, Any], pieces: Collection[str]) -> dict[str, Any]:
    """The same with those of its added tokens that are among ``pieces`` special."""
    added = [
        {**token, "special": token["special"] or token["content"] in pieces}
        for token in tree.get("added_tokens") or ()
    ]
    return {**tree, "added_tokens": added}


def finds_whole_words(tree: Mapping[str, Any]) -> bool:
    """Whether text may become an entry of the vocabulary that no merge leads to."""
    model = tree["model"]
    return model.get("type") in _WHOLE_WORDS or bool(model.get("ignore_merges"))


def _space_marks(tree: Mapping[str, Any]) -> list[str]:
    steps = [*parts_of(tree, "normalizer"), *parts_of(tree, "pre_tokenizer")]
    marks = [step["replacement"] for step in steps if step.get("type") == "Metaspace"]
    return marks + [step["content"] for step in steps if _replaces_spaces(step)]


def _replaces_spaces(step: Mapping[str, Any]) -> bool:
    is_of_spaces = step.get("type") == "Replace" and step.get("pattern") == {"String": " "}
    return is_of_spaces and step.get("content") == SPACE_MARK


def _code_point(step: Mapping[str, Any]) -> str:
    return "".join(f"U+{ord(each):04X}" for each in str(step.get("replacement", SPACE_MARK)))


_BYTE_OF = {piece: byte for byte, piece in enumerate(BYTE_PIECES)}
