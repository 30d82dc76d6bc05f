"""What is told of the documents that no window holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lmscale.files.printing import count_of
from lmscale.stream.dataset import Dataset
from lmscale.stream.whole_documents import choose_overlong


def describe_overlong(datasets: Mapping[str, Dataset], section: str) -> Iterator[str]:
    """A line for each dataset with whole documents that are longer than a window."""
    for name, dataset in datasets.items():
        if not dataset.num_overlong:
            continue
        is_cut = choose_overlong(dataset.config, dataset.shape) == "truncate"
        become = "cut behind their last answer that fits, or left out" if is_cut else "left out"
        total = sum(entry.documents for entry in dataset.manifest.shards)
        yield (
            f"{section}.{name}: {dataset.num_overlong:,} of {count_of(total, 'document')} are "
            f"longer than a window of {dataset.shape.tokens:,} tokens and {become} "
            "(stream.on_overlong; a longer stream.sequence_length holds more)"
        )
