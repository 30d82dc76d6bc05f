"""Whether the shards of a manifest are there: by name and size, not by content."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from lmscale.files.locations import is_remote

MAX_SHARDS = 100_000  # a look at each; on a slow file system some minutes
MAX_NAMED = 3


def find_shard_problems(places: Iterable[str]) -> tuple[list[str], bool]:
    """A line for each dataset that is not whole, and whether every shard was looked at.

    A place without a manifest is passed over: that is told elsewhere.
    """
    problems: list[str] = []
    left = MAX_SHARDS
    is_complete = True
    for place in places:
        folder = Path(place.removeprefix("file://"))
        manifest = folder / "manifest.json"
        if is_remote(place) or not manifest.is_file():
            is_complete = False
            continue
        try:
            shards = json.loads(manifest.read_bytes())["shards"]
            sizes = {str(shard["name"]): int(shard["bytes"]) for shard in shards}
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{manifest} is not a manifest of shards: {error!r}.")
            continue
        if len(sizes) > left:
            is_complete = False
            continue
        left -= len(sizes)
        bad = [told for name, size in sizes.items() if (told := _fault_of(folder / name, size))]
        if bad:
            more = f" and {len(bad) - MAX_NAMED:,} more" if len(bad) > MAX_NAMED else ""
            problems.append(
                f"{folder}: {len(bad):,} of {len(sizes):,} shards are not as {manifest.name} says: "
                f"{', '.join(bad[:MAX_NAMED])}{more}. Copy them again, or build them with "
                "`lmscale shards build CONFIG`."
            )
    return problems, is_complete


def _fault_of(path: Path, size: int) -> str | None:
    try:
        found = os.stat(path).st_size
    except OSError as error:
        return f"{path.name} ({error.strerror})"
    return None if found == size else f"{path.name} ({found:,} bytes in place of {size:,})"
