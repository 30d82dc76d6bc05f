"""What a dataset holds, shard by shard: the truth that the tars are checked against.

A tar cut between two members reads as a shorter tar without an error, so counts and hashes are
taken from here and never from the tar.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from lmscale.errors import DataError
from lmscale.files.atomic import write_json
from lmscale.files.locations import join_location, protocol_of
from lmscale.files.remote import MissingFileError, read_bytes
from lmscale.files.strangers import describe_unsafe_name, is_count, is_sha256, parse_json, quote

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_NAMED = 8  # problems named one by one


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar: the tokens of its blocks in order. Each document's last token is eos."""

    name: str
    bytes: int
    tokens: int
    documents: int
    blocks: int
    text_bytes: int  # UTF-8 bytes of the documents, for bits per byte
    index_offset: int  # where the header of the last member, __index__/blocks.npy, begins
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One dataset: a source's train or heldout part, or a set of any other name."""

    source: str
    split: str
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str  # uint16 or uint32
    eos_id: int
    pad_id: int
    block_tokens: int
    inputs: str  # hash of the documents, the tokenizer and the settings it was built from
    shards: tuple[ShardEntry, ...]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the canonical JSON of the rest: what checkpoints know the dataset by."""
        content = {"version": FORMAT_VERSION, **asdict(self)}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


def render_manifest(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON data, its fingerprint included."""
    return {
        "version": FORMAT_VERSION,
        "fingerprint": manifest.fingerprint,
        **asdict(manifest),
    }


def save_manifest(manifest: Manifest, folder: str | Path) -> None:
    write_json(Path(folder) / MANIFEST_NAME, render_manifest(manifest))


def load_manifest(location: str | Path, *, retries: int = 0) -> Manifest:
    """The manifest of the dataset in a folder or at a URL, which is asked ``retries`` times more.

    Raises ``DataError`` when it is missing or damaged.
    """
    path = join_location(location, MANIFEST_NAME)
    try:
        content = read_bytes(path, retries=retries)
    except MissingFileError:
        if protocol_of(location) is not None:
            raise
        raise DataError(
            f"{path}: there is no dataset here. Run `lmscale shards build CONFIG` first, or "
            "correct the path."
        ) from None
    return parse_manifest(content, name=path)


def parse_manifest(content: bytes, *, name: str = MANIFEST_NAME) -> Manifest:
    """The same from bytes, for remote datasets; ``name`` stands in the messages."""
    try:
        tree = parse_json(content)
        version = tree.pop("version")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{name}: has format version {quote(version)}; this lmscale reads "
                f"{FORMAT_VERSION}. Build the shards again."
            )
        fingerprint = tree.pop("fingerprint")
        shards = tuple(ShardEntry(**entry) for entry in tree.pop("shards"))
        manifest = Manifest(**tree, shards=shards)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{name}: not a manifest of shards: {error}.") from None
    if manifest.dtype not in ("uint16", "uint32"):
        raise DataError(f"{name}: dtype {quote(manifest.dtype)} is neither uint16 nor uint32.")
    lies = [why for entry in manifest.shards if (why := describe_unsafe_name(entry.name))]
    lies += _find_odd_values(manifest)
    for number, entry in enumerate(manifest.shards):
        lies += [f"of shard {number} the {why}" for why in _find_odd_values(entry)]
    if lies:
        raise DataError([f"{name}: {why}; it is refused." for why in lies[:MAX_NAMED]])
    if manifest.fingerprint != fingerprint:
        raise DataError(
            f"{name}: does not match its own fingerprint: it was edited or damaged. Build the "
            f"shards again, or restore the file."
        )
    return manifest


def _find_odd_values(part: Manifest | ShardEntry) -> Iterator[str]:
    """By the types that the fields are declared with; text will be shown."""
    for each in fields(part):
        value = getattr(part, each.name)
        if each.name in ("name", "shards"):  # which have rules of their own
            continue
        if each.name == "sha256":
            is_sound = is_sha256(value)
        elif each.type == "int":
            is_sound = is_count(value)
        else:
            is_sound = isinstance(value, str) and value.isprintable()
        if not is_sound:
            yield f"{each.name} is {quote(value)}"
