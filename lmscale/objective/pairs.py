# Shape letters: R rows (samples), S tokens that are read of a row, T tokens that are written.
"""What the objectives share that read one sequence and write another: their arrays and ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmscale.config import RunConfig
from lmscale.objective.objective import IGNORED
from lmscale.stream.batches import Field


@dataclass(frozen=True, kw_only=True)
class PairIds:
    """The objective's own ids that every pair has."""

    start: int  # stands before what is written
    end: int  # stands behind what is read and what is written
    own: tuple[int, ...]  # all of the objective, these two among them

    def of_text(self, labels: np.ndarray) -> np.ndarray:
        """Those labels that stand for text."""
        return labels[~np.isin(labels, (IGNORED, *self.own))]


def pair_ids(config: RunConfig) -> PairIds:
    ids = config.objective_ids
    return PairIds(start=ids["start"], end=ids["end"], own=tuple(ids.values()))


def pair_fields(lengths: tuple[int, int]) -> tuple[Field, ...]:
    """The arrays of samples of which so many tokens are read and written at most."""
    read, written = lengths
    return (
        Field("source", "int32", ("B", read)),
        Field("source_lengths", "int32", ("B",)),
        Field("labels", "int32", ("B", written)),
    )


def lay_in_rows(
    read: Sequence[np.ndarray], written: Sequence[np.ndarray], lengths: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The arrays of ``pair_fields`` of samples of any lengths: 0 and ``IGNORED`` behind them."""
    source_RS = np.zeros((len(read), lengths[0]), dtype=np.int32)
    labels_RT = np.full((len(read), lengths[1]), IGNORED, dtype=np.int32)
    for row, (source, target) in enumerate(zip(read, written, strict=True)):
        source_RS[row, : len(source)] = source
        labels_RT[row, : len(target)] = target
    source_lengths = np.array([len(source) for source in read], dtype=np.int32)
    return {"source": source_RS, "source_lengths": source_lengths, "labels": labels_RT}
