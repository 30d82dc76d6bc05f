"""Which pieces of somebody else's tokenizer begin, end and pad a document.

Told by the user (``--eos``), else by the files beside the tokenizer, else by the template that its
own ``tokenizer.json`` puts around a text. A document is bos, its text, eos: where a tokenizer
has no such names but BERT's, that is ``[CLS]``, its text, ``[SEP]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmscale.errors import ConfigError, DataError
from lmscale.files.reading import read_plain, reading
from lmscale.files.strangers import parse_json
from lmscale.files.tokenizer_files import HF_NAME

# Role → the names that configurations have for it, the first that is there counts.
_NAMES = {
    "bos": ("bos_token", "cls_token"),
    "eos": ("eos_token", "sep_token"),
    "pad": ("pad_token",),
}
_TOKEN_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_ID_FILES = ("generation_config.json", "config.json")
_MOST_CANDIDATES = 12
_LIKE_SPECIAL = re.compile(r"</?[A-Za-z_]+>|<\|[^|>]+\|>|\[[A-Z]+\]")  # </s>, <|end|>, [SEP]
Find = Callable[[str], int | None]  # a piece → its id


def choose_special_ids(
    chosen: Mapping[str, str | None],
    *,
    folder: Path,
    tree: Mapping[str, Any],
    find: Find,
    num_ids: int,
) -> dict[str, int]:
    """Role → id below ``num_ids``, of bos, eos and pad, as far as they are known.

    ``chosen``: role → the piece that the user names. ``folder``: with the files beside the
    tokenizer. ``tree``: of its ``tokenizer.json``. Raises ``ConfigError`` for a piece or an id that
    is not in the vocabulary.
    """
    files = read_beside(folder, (*_TOKEN_FILES, *_ID_FILES))
    found: dict[str, int] = {}
    problems = []
    for role in _NAMES:
        if piece := chosen.get(role):
            number = find(piece)
            if number is None:
                problems.append(f"--{role} {piece}: the tokenizer has no such piece.")
                continue
        else:
            number, file = next(_find_named(role, files, tree, find), (None, ""))
            if number is not None and number >= num_ids:
                problems.append(
                    f"{folder / file}: its {role}_token_id is {number}, and the tokenizer has "
                    f"{num_ids:,} ids. Name the piece: --{role} PIECE."
                )
                continue
        if number is not None:
            found[role] = number
    if problems:
        raise ConfigError(problems)
    return found


def _find_named(
    role: str, files: Mapping[str, dict[str, Any]], tree: Mapping[str, Any], find: Find
) -> Iterator[tuple[int, str]]:
    """Ids, and the file that says each."""
    is_none = _is_told_none(role, files)
    for name in _NAMES[role]:
        for file in _TOKEN_FILES:
            token = files.get(file, {}).get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and (number := find(token)) is not None:
                yield number, file
        for file in () if is_none else _ID_FILES:
            value = files.get(file, {}).get(f"{name}_id")
            value = value[0] if isinstance(value, list) and value else value
            if type(value) is int and value >= 0:  # -1: older configurations' word for none
                yield value, file
    around = _template(tree)
    place = {"bos": "before", "eos": "after"}.get(role)
    if place in around and (number := find(around[place])) is not None:
        yield number, HF_NAME


def _is_told_none(role: str, files: Mapping[str, dict[str, Any]]) -> bool:
    """Whether a tokenizer's file says that there is none. An eos every run needs: one that a
    model's file has is taken all the same.
    """
    config = files.get(_TOKEN_FILES[0], {})
    name = _NAMES[role][0]
    return role != "eos" and name in config and config[name] is None


def _template(tree: Mapping[str, Any]) -> dict[str, str]:
    """The pieces that ``post_processor`` puts right before and right behind a text."""
    steps = tree.get("post_processor") or {}
    steps = steps.get("processors") or [steps]
    around: dict[str, str] = {}
    for step in steps:
        if step.get("type") == "TemplateProcessing":
            place = "before"
            for part in step.get("single") or ():
                if "Sequence" in part:
                    place = "after"
                else:
                    around.setdefault(place, str(part.get("SpecialToken", {}).get("id")))
        elif step.get("type") in ("BertProcessing", "RobertaProcessing"):
            around |= {"before": str(step["cls"][0]), "after": str(step["sep"][0])}
    return around


def read_beside(folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The JSON objects of those of the files that are there. Raises ``DataError``."""
    found = {}
    for name in names:
        path = folder / name
        if not path.exists():
            continue
        with reading(path, "Restore it, or move it away."):
            tree = parse_json(read_plain(path))
            if not isinstance(tree, dict):
                raise ValueError("it is no object")
        found[name] = tree
    return found


def need_eos(special_ids: Mapping[str, int], candidates: Sequence[str]) -> None:
    """Raise ``DataError`` for a tokenizer without a piece for the end of a document."""
    if "eos" in special_ids:
        return
    listed = ", ".join(candidates[:_MOST_CANDIDATES]) or "none"
    more = ", …" if len(candidates) > _MOST_CANDIDATES else ""
    raise DataError(
        "nothing says which piece ends a document (eos). Name it: --eos PIECE, and --bos PIECE for "
        f"one that begins it. Its special pieces: {listed}{more}."
    )


def find_candidates(tree: Mapping[str, Any], vocabulary: Iterable[str]) -> list[str]:
    """What may begin or end a document: special tokens, or where there are none, pieces that are
    written like some.
    """
    special = [token["content"] for token in tree.get("added_tokens") or () if token["special"]]
    return special or sorted(filter(_LIKE_SPECIAL.fullmatch, vocabulary))
