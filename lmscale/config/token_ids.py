"""The ids of an objective, such as a mask's: pieces of the tokenizer, or numbered above them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, TypeAlias

from pydantic import Field

SENTINELS = "sentinels"
ONE_IDS = (
    *("mask", "cls", "sep", "start", "end", "prefix", "suffix", "middle"),
    *("mode_R", "mode_S", "mode_X"),
)
NamedIds: TypeAlias = dict[
    str, int | Annotated[tuple[int, int], Field(strict=False, min_length=2, max_length=2)]
]
"""As in the YAML: a name's id, and of ``sentinels`` the first and the last. Of one that is named by
itself, such as ``sentinel_7``, that counts.
"""

_SENTINEL = re.compile(r"sentinel_(\d{1,9})")
_MAY_BE_ONE = {"start", "end"}  # BART's decoder begins with what ends a text


def number_ids(names: Sequence[str], named: NamedIds, *, first: int) -> dict[str, int]:
    """The ids of an objective's names: those that are named, the others from ``first`` on."""
    own = {name: _find_id(name, named) for name in names}
    added = iter(range(first, first + len(names)))
    return {name: next(added) if number is None else number for name, number in own.items()}


def _find_id(name: str, named: NamedIds) -> int | None:
    value = named.get(name)
    if isinstance(value, int):
        return value
    ends, sentinel = named.get(SENTINELS), _SENTINEL.fullmatch(name)
    if sentinel is None or not isinstance(ends, tuple):
        return None
    place, (first, last) = int(sentinel[1]), ends
    if place > abs(last - first):
        return None
    return first + place if last >= first else first - place


def find_sentinels(names: Iterable[str]) -> list[str]:
    """Those of an objective's names that stand for a span each, in their order."""
    return [name for name in names if _SENTINEL.fullmatch(name)]


def fold_ids(ids: Mapping[str, int]) -> NamedIds:
    """Names and their ids as in the YAML, where the sentinels are in a row; else each by itself."""
    sentinels = find_sentinels(ids)
    if not sentinels:
        return dict(ids)
    named: NamedIds = {name: number for name, number in ids.items() if name not in sentinels}
    named[SENTINELS] = (ids[sentinels[0]], ids[sentinels[-1]])
    return named if number_ids([*ids], named, first=0) == ids else dict(ids)


def find_id_problems(named: NamedIds, names: Sequence[str], *, num_pieces: int) -> Iterator[str]:
    """What is wrong with ``tokenizer.ids``, of a tokenizer of so many pieces and an objective that
    needs ``names``.
    """
    key = "tokenizer.ids"
    known = dict.fromkeys((*ONE_IDS, *(n for n in names if not n.startswith("sentinel_"))))
    for name, value in named.items():
        if name != SENTINELS and name not in known and not _SENTINEL.fullmatch(name):
            nearest = get_close_matches(name, [*known, SENTINELS], n=1)
            meant = f"did you mean {nearest[0]}?" if nearest else ""
            yield f"{key}.{name}: no objective has such an id; {meant or _list_known(known)}"
        elif isinstance(value, int) == (name == SENTINELS):
            two = "two ids, the first and the last: [32099, 32000]"
            yield f"{key}.{name}: give {two if name == SENTINELS else 'one id'}"
        elif outside := [i for i in _ends(value) if not 0 <= i < num_pieces]:
            yield (
                f"{key}.{name} = {outside[0]} is no id of the tokenizer, which has "
                f"tokenizer.vocab_size = {num_pieces} of them. Leave out what it does not have: "
                "it is added above"
            )
    by_id: dict[int, list[str]] = defaultdict(list)
    for name, number in number_ids(names, named, first=num_pieces).items():
        by_id[number].append(name)
    for number, several in by_id.items():
        if len(several) > 1 and not _MAY_BE_ONE.issuperset(several):
            yield (
                f"{key}: {' and '.join(several)} are one id, {number}, which the objective could "
                "not tell apart. Give each its own, or leave it out: it is added above the "
                "tokenizer's"
            )


def _ends(value: int | tuple[int, int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else value


def _list_known(known: Mapping[str, None]) -> str:
    return f"there are {', '.join((*known, SENTINELS))}"


def render_ids(named: NamedIds) -> str:
    """``{mask: 103, sentinels: [32099, 32000]}``, as in the YAML."""
    shown = (f"{n}: {i if isinstance(i, int) else [*i]}" for n, i in named.items())
    return f"{{{', '.join(shown)}}}"
