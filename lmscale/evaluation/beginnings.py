"""Documents that a run has read, or that were held out: a beginning, and what follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmscale.config import RunConfig
from lmscale.errors import ConfigError
from lmscale.objective.pieces import find_pieces
from lmscale.stream.audit import open_recorded
from lmscale.stream.batches import Rows
from lmscale.stream.dataset import Dataset
from lmscale.stream.ledger import LEDGER, load_record, read_ledger
from lmscale.stream.stream import Stream

_MOST_TRIES = 20  # windows that are looked at for each beginning that is wanted


class Beginning(NamedTuple):
    """Of a document, or of what a window holds of one."""

    prompt: list[int]
    rest: list[int]  # which follows it there


class Lengths(NamedTuple):
    """Tokens of both."""

    prompt: int
    rest: int


def check_read(folder: Path, *, step: int | None = None) -> int:
    """How many samples a run had read after ``step`` steps, or has by now. Raises ``ConfigError``
    where it has read nothing, such as an import.
    """
    ledger = read_ledger(folder) if (folder / LEDGER).exists() else []
    rows = [row for row in ledger if step is None or row.step < step]
    samples = max((row.first_n + row.samples for row in rows), default=0)
    if not samples:
        raise ConfigError(
            f"{folder} has read nothing of its own: there are no documents that it could have "
            "kept. Take a run that was trained."
        )
    return samples


def open_read(config: RunConfig, folder: Path, *, step: int) -> tuple[Stream, int]:
    """The stream of a run and how many samples it had read after ``step`` steps; the caller closes
    it. Raises ``ConfigError`` where it has read nothing.
    """
    samples = check_read(folder, step=step)
    state, locations = load_record(folder)
    return open_recorded(config, state, locations, look=""), samples


def draw_read(
    stream: Stream, samples: int, count: int, lengths: Lengths, *, seed: int
) -> list[Beginning]:
    """Up to ``count`` beginnings in different windows of those that were read."""

    def read(number: int) -> Rows:
        return stream.read_rows(number, 1)

    return _draw(read, samples, count, lengths, seed)


def draw_held_out(
    datasets: Iterable[Dataset], count: int, lengths: Lengths, *, seed: int
) -> list[Beginning]:
    """The same of held-out sets, each with as many as its share of the windows."""
    sets = list(datasets)
    ends = np.cumsum([each.num_windows for each in sets])

    def read(number: int) -> Rows:
        place = int(np.searchsorted(ends, number, side="right"))
        return sets[place].read([number - int(ends[place] - sets[place].num_windows)])

    return _draw(read, int(ends[-1]), count, lengths, seed) if sets else []


def _draw(
    read: Callable[[int], Rows], total: int, count: int, lengths: Lengths, seed: int
) -> list[Beginning]:
    """One of each of some windows drawn from ``total``: of those of its documents that are long
    enough. In the order of the windows, so that few shards are open at once.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    tries = min(total, count * _MOST_TRIES)
    numbers = (
        generator.choice(total, tries, replace=False)
        if total < 2**24
        else np.unique(generator.integers(total, size=tries))
    )
    found: list[tuple[int, Beginning]] = []
    for first in range(0, len(numbers), count):
        for number in sorted(numbers[first : first + count].tolist()):
            fitting = list(_find_long(read(number), lengths))
            if fitting:
                found.append((number, fitting[int(generator.integers(len(fitting)))]))
        if len(found) >= count:
            break
    return [beginning for _, beginning in found[:count]]


def _find_long(rows: Rows, lengths: Lengths) -> Iterator[Beginning]:
    pieces, tokens = find_pieces(rows, mask_documents=True), rows.tokens.reshape(-1)
    for start, length in zip(pieces.starts, pieces.lengths, strict=True):
        if length > sum(lengths):  # the token behind may be the end of the document
            ids = tokens[start : start + sum(lengths)].tolist()
            yield Beginning(ids[: lengths.prompt], ids[lengths.prompt :])
