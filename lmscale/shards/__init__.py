"""Documents → datasets: tars of token blocks and a manifest that binds them. Loads no torch.

::

    documents ──→ slices (slices.py) ─→ a tar of token blocks (writer.py) ──→ Manifest (manifest.py)
                                                                                 │
    stream ←── MappedShard: blocks without a copy (reader.py) ←──────────────────┘

The first call to read is ``build_shards``; a slice is tokenised by ``build.SliceTask.do``.
``verify_dataset`` reads every byte of a dataset. Layout on disk: docs/formats.md, Shards.
"""

from lmscale.shards.build import build_shards, shards_progress
from lmscale.shards.manifest import (
    Manifest,
    ShardEntry,
    load_manifest,
    parse_manifest,
    save_manifest,
)
from lmscale.shards.reader import MappedShard, open_shard
from lmscale.shards.verify import find_datasets, verify_dataset

__all__ = [
    "Manifest",
    "MappedShard",
    "ShardEntry",
    "build_shards",
    "find_datasets",
    "load_manifest",
    "open_shard",
    "parse_manifest",
    "save_manifest",
    "shards_progress",
    "verify_dataset",
]
