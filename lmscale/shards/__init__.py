"""Documents → datasets: tars of token blocks and a manifest that binds them. Loads no torch."""

from lmscale.shards.build import (
    DatasetSummary,
    ShardsSummary,
    build_shards,
    build_shards_task,
    shards_progress,
)
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
    "ShardsSummary",
    "build_shards",
    "build_shards_task",
    "find_datasets",
    "load_manifest",
    "open_shard",
    "parse_manifest",
    "save_manifest",
    "shards_progress",
    "verify_dataset",
]
