"""Documents → datasets: tars of token blocks and a manifest that binds them. Loads no torch."""

from lmscale.shards.build import DatasetSummary, build_shards
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
    "DatasetSummary",
    "Manifest",
    "MappedShard",
    "ShardEntry",
    "build_shards",
    "find_datasets",
    "load_manifest",
    "open_shard",
    "parse_manifest",
    "save_manifest",
    "verify_dataset",
]
