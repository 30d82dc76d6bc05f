"""Which ids of an objective, such as a mask's, somebody else's tokenizer has among its pieces.

Told by the files beside it, else by what such pieces are usually called. ``tokenizer.ids`` of a
run's configuration takes what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from lmscale.config.token_ids import SENTINELS, NamedIds
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.special_tokens import read_beside

_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_ID_FILES = ("generation_config.json", "config.json")
_USUAL = {
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "start": ("<|start|>",),  # as lmscale exports one that it added
    "end": ("<|end|>",),
    "mode_R": ("[NLU]",),  # UL2's
    "mode_S": ("[S2S]",),
    "mode_X": ("[NLG]",),
}
_FILL_MIDDLE = (  # prefix, suffix, middle
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama's
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek's
)
Find = Callable[[str], int | None]  # a piece → its id
Files = Mapping[str, dict[str, Any]]


def find_named_ids(tokenizer: Tokenizer, folder: Path) -> NamedIds:
    """The ids of the tokenizer in ``folder`` by the objectives' names. Raises ``DataError``."""
    files = _read_beside(folder)
    ids = {tokenizer.piece(number): number for number in range(tokenizer.vocab_size)}
    return _find_all(tokenizer, ids, files)


def find_own_ids(tokenizer: Tokenizer) -> NamedIds:
    """Those of a tokenizer's special tokens that are written as usual."""
    return _find_all(tokenizer, tokenizer.special_tokens, {})


def _find_all(tokenizer: Tokenizer, ids: Mapping[str, int], files: Files) -> NamedIds:
    found: NamedIds = {}
    for name in ("mask", "cls", "sep"):
        number = next(_find_token(name, files, ids.get), None)
        if number is not None:
            found[name] = number
    found |= _find_ends(files, ids.get, tokenizer)
    for marks in _FILL_MIDDLE:
        if all(mark in ids for mark in marks):
            for name, mark in zip(("prefix", "suffix", "middle"), marks, strict=True):
                found[name] = ids[mark]
            break
    for name in ("mode_R", "mode_S", "mode_X"):
        if (mark := _USUAL[name][0]) in ids:
            found[name] = ids[mark]
    if (ends := _find_sentinels(ids)) is not None:
        found[SENTINELS] = ends
    return found


def find_ends(tokenizer: Tokenizer, folder: Path) -> NamedIds:
    """Those of what is written alone, as the files of the model in ``folder`` have them."""
    ids = {tokenizer.piece(number): number for number in range(tokenizer.vocab_size)}
    return _find_ends(_read_beside(folder), ids.get, tokenizer)


def _read_beside(folder: Path) -> Files:
    folder = folder if folder.is_dir() else folder.parent
    return read_beside(folder, (*_TOKEN_FILES, *_ID_FILES))


def _find_token(name: str, files: Files, find: Find) -> Iterator[int]:
    """By the name of a part that a file gives a token, else by a usual name."""
    tokens = [files.get(file, {}).get(f"{name}_token") for file in _TOKEN_FILES]
    tokens = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    for token in (*tokens, *_USUAL[name]):
        if isinstance(token, str) and (number := find(token)) is not None:
            yield number


def _find_ends(files: Files, find: Find, tokenizer: Tokenizer) -> NamedIds:
    """Of an encoder-decoder, which says with what it begins to write."""
    begins, ends = (
        next(_find_number(key, files), None) for key in ("decoder_start_token_id", "eos_token_id")
    )
    if begins is None or begins >= tokenizer.vocab_size:  # above it: added there, and again here
        begins, ends = (find(_USUAL[name][0]) for name in ("start", "end"))
    else:
        ends = tokenizer.special_ids.get("eos") if ends is None else ends
    if begins is None or ends is None or not 0 <= max(begins, ends) < tokenizer.vocab_size:
        return {}
    return {"start": begins, "end": ends}


def _find_number(key: str, files: Files) -> Iterator[int]:
    for file in _ID_FILES:
        value = files.get(file, {}).get(key)
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is int and value >= 0:
            yield value


def _find_sentinels(ids: Mapping[str, int]) -> tuple[int, int] | None:
    """``<extra_id_0>`` and the last of those behind it whose ids are in a row, up or down."""
    names = takewhile(ids.__contains__, (f"<extra_id_{place}>" for place in count()))
    numbers = [ids[name] for name in names]
    if not numbers:
        return None
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    row = takewhile(lambda item: item[1] == numbers[0] + item[0] * step, enumerate(numbers))
    last = [number for _, number in row][-1]
    return (numbers[0], last) if abs(step) == 1 else None
