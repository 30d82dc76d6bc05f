"""Which words a word looks at, by the layers' weights: what is chosen, tables and grids. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmscale.errors import ConfigError
from lmscale.files.printing import count_of
from lmscale.views.attention_picture import Grid, wide
from lmscale.views.sides import Side, Sides, merge_words

MOST_WORDS = 400  # in a picture, whose squares a browser has to draw
OWN, READ, CROSS = PARTS = ("own", "read", "cross")  # of ``LayerAttention.part``
_WHAT = {OWN: "", READ: " of what is read", CROSS: " of what is written over what is read"}


@dataclass(frozen=True, kw_only=True)
class Look:
    """Weights of words, in one part of a model."""

    part: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    shares: np.ndarray
    """f32 [layers, heads, queries, keys]."""
    layers: tuple[int, ...]
    """Their numbers in the model."""


def choose_sides(sides: Sides, part: str) -> tuple[Side, Side]:
    """Who looks, and what is looked at. Raises ``ConfigError`` for a part that is not there."""
    if part == OWN:
        return sides.own, sides.own
    if sides.read is None:
        raise ConfigError(
            f"--part {part}: the run's model reads and writes one sequence. Leave it out."
        )
    return (sides.read if part == READ else sides.own), sides.read


def merge_layers(
    layers: Sequence[np.ndarray],
    numbers: Sequence[int],
    sides: Sides,
    *,
    part: str,
    by_pieces: bool,
) -> Look:
    """The look of layers' weights f32 [heads, T, S], by words or by the tokenizer's pieces."""
    looking, looked_at = choose_sides(sides, part)
    queries, keys = (side.group(by_pieces=by_pieces) for side in (looking, looked_at))
    shares = np.stack([merge_words(each, queries, keys) for each in layers])
    return Look(
        part=part,
        queries=looking.names(queries),
        keys=looked_at.names(keys),
        shares=shares,
        layers=tuple(numbers),
    )


def name_words(side: Side, *, by_pieces: bool) -> tuple[str, ...]:
    return side.names(side.group(by_pieces=by_pieces))


def find_word(words: Sequence[str], word: str) -> list[int]:
    """The places of a word: as it is written, in any case, or ``#5`` for place 5. Raises
    ``ConfigError`` with the words that there are.
    """
    if word.startswith("#") and word[1:].isdecimal() and int(word[1:]) < len(words):
        return [int(word[1:])]
    asked = word.strip().casefold()
    if found := [place for place, each in enumerate(words) if each.casefold() == asked]:
        return found
    listed = " ".join(f"#{place} {each}" for place, each in enumerate(words[:60]))
    more = " …" if len(words) > 60 else ""
    raise ConfigError(
        f"The text has no word {word!r} to look from (--token). There are: {listed}{more}"
    )


def render_word(look: Look, place: int, *, most: int) -> list[str]:
    """The words that one looks at most: heads' and layers' mean, and the head that does most."""
    shares = look.shares[:, :, place]  # [layers, heads, keys]
    mean = shares.mean((0, 1))
    lines = [f"{'word':24} {'mean':>6}  {'most':>6}  by"]
    seen = np.count_nonzero(mean)  # what lies behind a word may not be looked at
    for key in np.argsort(-mean, kind="stable")[: min(most, seen)]:
        layer, head = np.unravel_index(shares[:, :, key].argmax(), shares.shape[:2])
        lines.append(
            f"{_pad(f'#{key} {look.keys[key]}', 24)} {mean[key]:6.1%}  "
            f"{shares[layer, head, key]:6.1%}  layer {look.layers[layer]} head {head}"
        )
    return lines


def render_all(look: Look, *, most: int) -> list[str]:
    """Of every word those that it looks at most, by the mean of layers and heads."""
    mean = look.shares.mean((0, 1))
    lines = []
    for query, name in enumerate(look.queries):
        seen = np.count_nonzero(mean[query])
        best = np.argsort(-mean[query], kind="stable")[: min(most, seen)]
        named = ", ".join(f"{look.keys[key]} {mean[query, key]:.0%}" for key in best)
        lines.append(f"{_pad(f'#{query} {name}', 24)} {named}")
    return lines


def plan_grids(
    look: Look, place: int | None, *, model: str, every_layer: bool = False
) -> Iterator[Grid]:
    """What is drawn. Of one word the layers, or of a single layer its heads; with ``every_layer``
    both. Of all words a grid for each layer.

    Raises ``ConfigError`` for more words than a picture holds.
    """
    longest = max(len(look.queries), len(look.keys))
    if longest > MOST_WORDS:
        raise ConfigError(
            f"The text has {count_of(longest, 'word')}: a picture holds {MOST_WORDS}. Shorten it, "
            "or leave --out out."
        )
    what = _WHAT[look.part]
    if place is None:
        for layer, shares in zip(look.layers, look.shares.mean(1), strict=True):
            title = f"{model}: attention{what}, layer {layer}, mean of its heads, %"
            yield Grid(title=title, rows=look.queries, columns=look.keys, shares=shares)
        return
    title = f"{model}: what “{look.queries[place]}” looks at{what}"
    if len(look.layers) > 1:
        rows = [f"layer {layer}" for layer in look.layers]
        shares = look.shares[:, :, place].mean(1)
        yield _with_mean(look, place, f"{title}, mean of the heads, %", rows, shares)
        if not every_layer:
            return
    for layer, shares in zip(look.layers, look.shares[:, :, place], strict=True):
        rows = [f"head {head}" for head in range(len(shares))]
        yield _with_mean(look, place, f"{title}, layer {layer}, %", rows, shares)


def _with_mean(look: Look, place: int, title: str, rows: Sequence[str], shares: np.ndarray) -> Grid:
    """Of the word at ``place``; the last row is the mean of the others."""
    return Grid(
        title=title,
        rows=(*rows, "mean"),
        columns=look.keys,
        shares=np.concatenate([shares, shares.mean(0, keepdims=True)]),
        marked=None if look.part == CROSS else place,
        last_apart=True,
    )


def _pad(text: str, width: int) -> str:
    return text + " " * max(0, width - wide(text))
