"""What a safetensors file begins with, so that its tensors can be streamed behind it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Entry(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: str  # as safetensors names it
    shape: Sequence[int]
    bytes: int


def render_header(entries: Iterable[Entry]) -> bytes:
    """A length, and where in the rest of the file each tensor is, one behind the other.

    The rest begins at a multiple of 8 bytes; tensors are aligned if those of wider elements come
    first.
    """
    tree: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.bytes
        tree[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(tree, separators=(",", ":")).encode()
    text = text.ljust(math.ceil(len(text) / 8) * 8)
    return struct.pack("<Q", len(text)) + text
