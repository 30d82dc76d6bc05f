"""How often each class comes in what a run reads, and the weights that would balance them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lmscale.shards.members import LABELS, TAGS
from lmscale.stream.dataset import Dataset
from lmscale.stream.stream import Stream


def count_labels(
    dataset: Dataset, advance: Callable[[float], None] = lambda shards: None
) -> np.ndarray:
    """Documents of each class, or words of each tag: int64 [classes], of all the shards.

    The manifest has no such counts, so that the labels of every shard are read: of a document four
    bytes, of a token two. A remote shard is fetched for it, as for a first epoch.
    """
    labels = dataset.manifest.labels
    assert labels is not None, "the dataset was opened for an objective that reads labels"
    name = TAGS if labels.kind == "tags" else LABELS
    counts = np.zeros(len(labels.names), dtype=np.int64)
    for number in range(len(dataset.manifest.shards)):
        with dataset.mapped(number) as shard:
            for block in range(shard.num_blocks):
                values = shard.values(name, block)
                counts += np.bincount(values[values >= 0], minlength=len(counts))
        advance(1)
    return counts


def expect_classes(
    stream: Stream, *, at: int, advance: Callable[[float], None] = lambda shards: None
) -> np.ndarray:
    """How many of each class a window has on average, by the mixture at sample ``at``: f64
    [classes]. A source counts by its share of the windows, however large it is.
    """
    expected = 0.0
    for name, share in stream.shares_at(at).items():
        if share and name in stream.datasets:
            dataset = stream.datasets[name]
            expected = expected + share * count_labels(dataset, advance) / dataset.num_windows
    return np.asarray(expected)


def balance(counts: np.ndarray) -> np.ndarray:
    """The weights n / (C · n_c) of C classes, n_c > 0 of n examples each, as scikit-learn's
    ``balanced`` (King and Zeng 2001): every class weighs alike, and an example 1 on average.
    """
    return counts.sum() / (len(counts) * counts)
