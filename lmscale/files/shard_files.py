"""Whether the shards of a dataset are there: by name and size, as its manifest lists them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lmscale.errors import DataError
from lmscale.files.locations import local_path
from lmscale.files.reading import read_plain
from lmscale.files.strangers import describe_unsafe_name, is_count, parse_json

MAX_SHOWN = 10  # problems of one kind in a message
MANIFEST = "manifest.json"  # of a dataset, of a corpus source, of a checkpoint


@dataclass(frozen=True, kw_only=True)
class WrongFile:
    """A shard that is missing or has another size than the manifest says."""

    path: Path
    wanted: int  # bytes, by the manifest
    size: int | None  # bytes; None: the file cannot be looked at, and ``reason`` says why
    reason: str = ""

    def __str__(self) -> str:
        if self.size is None:
            return f"{self.path.name} ({self.reason})"
        return f"{self.path.name} ({self.size:,} bytes in place of {self.wanted:,})"


def read_shard_sizes(location: str | Path) -> dict[str, int]:
    """Name → bytes of every shard of a local dataset, in the manifest's order.

    Raises ``OSError`` for a missing manifest, ``DataError`` for one that lists no shards, or others
    than beside it.
    """
    manifest = local_path(location) / MANIFEST
    content = read_plain(manifest)
    try:
        sizes = {shard["name"]: shard["bytes"] for shard in parse_json(content)["shards"]}
        for name, size in sizes.items():
            if why := describe_unsafe_name(name) or (not is_count(size) and "a size is no number"):
                raise ValueError(why)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{manifest} is not a manifest of shards: {error!r}.") from None
    return sizes


def find_mixed_datasets(places: Mapping[str, str]) -> list[str]:
    """Of a setting → local dataset each: those of another tokenizer than the first one's, and the
    sources (``stream.sources``) whose documents begin otherwise (with or without bos).

    A dataset whose manifest cannot be read is passed over.
    """
    problems: list[str] = []
    first = None
    for setting, place in places.items():
        try:
            tree = parse_json(read_plain(local_path(place) / MANIFEST))
        except (OSError, ValueError):
            continue
        if not isinstance(tree, dict):
            continue
        mine = {"the tokenizer": tree.get("tokenizer_fingerprint")}
        if setting.startswith("stream.sources."):
            mine["bos ="] = tree.get("bos_id")  # not there: documents begin with their text
        first = first or (setting, mine)
        problems += [
            f"{setting}: its shards were made with {what} {str(value)[:12]}, those of {first[0]} "
            f"with {str(first[1].get(what))[:12]}. Build its shards again, as those."
            for what, value in mine.items()
            if value != first[1].get(what, value)
        ]
    return problems


def find_wrong_files(location: str | Path, sizes: Mapping[str, int]) -> list[WrongFile]:
    """The shards of a local dataset that are not as ``sizes`` (name → bytes) says."""
    wrong = []
    for name, wanted in sizes.items():
        path = local_path(location) / name
        try:
            size, reason = os.stat(path).st_size, ""
        except OSError as error:
            size, reason = None, error.strerror or str(error)
        if size != wanted:
            wrong.append(WrongFile(path=path, wanted=wanted, size=size, reason=reason))
    return wrong


def describe_wrong_files(location: str | Path, sizes: Mapping[str, int]) -> list[str]:
    """The same in words, one problem each; of very many the first."""
    problems: list[str] = []
    for file in find_wrong_files(location, sizes):
        if file.size is None:
            problems.append(
                f"{file.path}: the shard is missing ({file.reason}); the manifest lists it. "
                f"Restore it, or run `lmscale shards build` again."
            )
        else:
            what = "cut" if file.size < file.wanted else "too long"
            problems.append(
                f"{file.path}: the shard is {what}: {file.size} bytes, the manifest says "
                f"{file.wanted}. Restore it, or delete it and run `lmscale shards build` again."
            )
    if len(problems) > MAX_SHOWN:
        more = len(problems) - MAX_SHOWN
        problems[MAX_SHOWN:] = [f"{location}: {more} more shards are missing or of a wrong size."]
    return problems


def explain_missing(location: str | Path) -> str:
    """What a local dataset without a manifest lacks, by what lies beside it, and what to do."""
    folder = local_path(location)
    is_building = folder.with_name(f".{folder.name}.building").exists()
    if (
        folder.name == "heldout"
        and (folder.parent / "train" / MANIFEST).exists()
        and not is_building
    ):
        return (
            "The shards of `train` are there: of this source no document was held out. Raise "
            "corpus.heldout_fraction and build corpus and shards again with --force, or name "
            "another set in evaluation.sets, or none."
        )
    return "Build it with `lmscale shards build CONFIG`, or name another place."
