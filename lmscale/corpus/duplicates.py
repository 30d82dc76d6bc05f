"""Find the texts that several parts hold, and take the later copies out.

Each part brings an index of its texts' digests, sorted, so that all parts can be compared one range
of digests after the other: memory holds ``RANGE_ROWS`` rows and the places of the duplicates found.
"""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from lmscale.corpus.documents import SPLITS, DocumentFile, FileSums, check_documents
from lmscale.errors import DataError
from lmscale.files.arrays import map_columns, to_npy
from lmscale.files.atomic import atomic_path, write_bytes, writing
from lmscale.files.reading import read_plain, reading, seal, unseal
from lmscale.files.strangers import checked

RANGE_ROWS = 2**23  # compared at once, about 72 bytes each
# An index is uint64 [5, texts]: these rows, and its columns in the order of the digests.
HIGH, LOW, FIRST, LINES, FLAGS = range(5)
_FILE = TypeAdapter(DocumentFile)
_IS_CUT = 2  # beside the split's number in FLAGS


def index_row(digest: bytes, split: str, first: int, lines: int, *, is_cut: bool) -> list[int]:
    """A text's five numbers in an index: of its digest's 16 bytes, its first line in its split, its
    lines (more than one if it was split), and flags.
    """
    halves = [int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")]
    return [*halves, first, lines, SPLITS.index(split) + _IS_CUT * is_cut]


def write_index(path: Path, numbers: array[int]) -> None:
    """Save an index sorted by digest; ``numbers`` holds the ``index_row`` of each text."""
    rows = np.frombuffer(numbers, dtype=np.uint64).reshape(-1, 5)
    rows = rows[np.lexsort((rows[:, LOW], rows[:, HIGH]))]
    write_bytes(path, to_npy(np.ascontiguousarray(rows.T)))


def find_duplicates(indexes: Sequence[Path], *, range_rows: int = RANGE_ROWS) -> list[np.ndarray]:
    """For each part, in order, the columns of its index whose text an earlier part holds."""
    texts = sum(_open_index(path).shape[1] for path in indexes)
    num_ranges = max(1, -(-texts // range_rows))
    columns_of = [[np.zeros(0, dtype=np.uint32)] for _ in indexes]
    edges = [2**64 * number // num_ranges for number in range(num_ranges + 1)]
    for start, end in itertools.pairwise(edges):
        pieces = []
        for part, path in enumerate(indexes):
            table = _open_index(path)
            a = np.searchsorted(table[HIGH], np.uint64(start))
            b = np.searchsorted(table[HIGH], np.uint64(end - 1), side="right")
            # A list copies; a view would keep the map open, one of 1,024 files a process may have.
            high, low = table[[HIGH, LOW], a:b]
            owner = np.full(b - a, part, dtype=np.uint32)
            pieces.append((high, low, owner, np.arange(a, b, dtype=np.uint32)))
        high, low, owner, column = (np.concatenate(row) for row in zip(*pieces, strict=True))
        order = np.lexsort((owner, low, high))  # the first part comes first among equals
        high, low = high[order], low[order]
        again = order[1:][(high[1:] == high[:-1]) & (low[1:] == low[:-1])]
        owner, column = owner[again], column[again]
        for part in np.unique(owner):
            columns_of[part].append(column[owner == part].astype(np.uint32))
    return list(map(np.concatenate, columns_of))


def _open_index(path: Path) -> np.ndarray:
    with reading(path, "Delete its folder, and run the same command again."):
        return map_columns(path, np.dtype("<u8"), 5)


def dropped_lines(index: Path, columns: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    """Split → numbers, ascending, of the lines of the texts in ``columns`` of a part's index; and
    how many of these texts were split or truncated.
    """
    table = _open_index(index)[:, columns]
    lines = {}
    for number, split in enumerate(SPLITS):
        mine = table[:, (table[FLAGS] & np.uint64(1)) == number].astype(np.int64)
        starts = np.repeat(mine[FIRST] - np.cumsum(mine[LINES]) + mine[LINES], mine[LINES])
        lines[split] = np.sort(starts + np.arange(len(starts)))
    return lines, int(np.count_nonzero(table[FLAGS] & np.uint64(_IS_CUT)))


@dataclass(frozen=True, kw_only=True)
class RewriteTask:
    """A file of documents to write again without some lines; crosses to a worker process."""

    path: Path
    lines: np.ndarray  # ascending
    file: DocumentFile
    target: Path


def rewrite_file(task: RewriteTask) -> DocumentFile:
    """Write ``target`` and, last, a record beside it; a killed finisher's whole files are used."""
    record = task.target.with_suffix(".json")
    with suppress(OSError, ValueError, DataError):  # missing, or damaged: written again
        file = checked(_FILE, unseal(read_plain(record)))
        check_documents(task.target, file)
        return file
    check_documents(task.path, task.file)
    dropped = set(task.lines.tolist())
    sums = FileSums()
    lost_bytes = 0  # of text; the lines that stay are not parsed for theirs
    with writing("documents without duplicates", task.target.parent):
        task.target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(task.target) as temporary:
            with open(task.path, "rb") as source, open(temporary, "wb") as target:
                for number, line in enumerate(source):
                    if number in dropped:
                        lost_bytes += len(json.loads(line)["text"].encode())
                    else:
                        target.write(line)
                        sums.add(line, text_bytes=0)
        sums.text_bytes = task.file.text_bytes - lost_bytes
        file = sums.entry(task.file.name)
        write_bytes(record, seal(asdict(file)))
    return file
