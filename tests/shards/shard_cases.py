"""What the tests of the shards share."""

from pathlib import Path

import pytest

# webdataset closes its files by garbage collection.
webdataset_leaks = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


def with_shards(config, folder, **changes):
    section = config.shards.model_copy(update={"folder": str(folder), **changes})
    return config.model_copy(update={"shards": section})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def rewrite(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))
