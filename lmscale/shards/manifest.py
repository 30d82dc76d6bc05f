"""What a dataset holds, shard by shard: the truth that the tars are checked against.

A tar cut between two members reads as a shorter tar without an error, so counts and hashes are
taken from here and never from the tar.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from lmscale.config.labels import LabelSet
from lmscale.errors import DataError
from lmscale.files.atomic import write_json
from lmscale.files.locations import join_location, protocol_of
from lmscale.files.remote import MissingFileError, read_bytes
from lmscale.files.shard_files import explain_missing
from lmscale.files.strangers import (
    checked,
    describe_unsafe_name,
    is_count,
    is_sha256,
    parse_json,
    quote,
)
from lmscale.shards.members import Member, plan_members

FORMAT_VERSION = 4  # of one with answers or dialogues; the others are byte for byte what they were
WITHOUT_SPANS = 3  # of one with pairs or other labels
WITHOUT_MEMBERS = 2  # of one that has neither, and documents that begin with bos
WITHOUT_BOS = 1  # of one that has neither, and documents that begin without
MANIFEST_NAME = "manifest.json"
MAX_NAMED = 8  # problems named one by one


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar: the tokens of its blocks in order. A document is bos (where the dataset has it), its
    text, eos.
    """

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
    bos_id: int | None = None  # None: documents begin with their text
    eos_id: int
    pad_id: int  # fills what a window has left; it is never predicted
    block_tokens: int
    inputs: str  # hash of the documents, the tokenizer and the settings it was built from
    has_pairs: bool = False  # every document is a pair, with a place where its second part begins
    labels: LabelSet | None = None  # that every document, or every word, has
    chat_template: str = ""  # that every document, a dialogue, was written by; empty: they are none
    shards: tuple[ShardEntry, ...]

    @property
    def version(self) -> int:
        if self.members:
            has_spans = self.labels is not None and self.labels.kind == "spans"
            return FORMAT_VERSION if has_spans or self.has_turns else WITHOUT_SPANS
        return WITHOUT_BOS if self.bos_id is None else WITHOUT_MEMBERS

    @property
    def members(self) -> tuple[Member, ...]:
        """The arrays of every block beside its tokens and documents."""
        return plan_members(has_pairs=self.has_pairs, labels=self.labels, has_turns=self.has_turns)

    @property
    def has_turns(self) -> bool:
        return bool(self.chat_template)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the canonical JSON of the rest: what checkpoints know the dataset by."""
        return _fingerprint(_to_tree(self))

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def text_tokens(self) -> int:
        """Without bos and eos of the documents."""
        return self.tokens - self.documents * (1 if self.bos_id is None else 2)

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
    fingerprint = manifest.fingerprint
    return {"version": manifest.version, "fingerprint": fingerprint, **_to_tree(manifest)}


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
        raise DataError(f"{path}: there is no dataset here. {explain_missing(location)}") from None
    return parse_manifest(content, name=path)


def parse_manifest(content: bytes, *, name: str = MANIFEST_NAME) -> Manifest:
    """The same from bytes, for remote datasets; ``name`` stands in the messages."""
    try:
        tree = parse_json(content)
        version = tree["version"]
        if version not in (WITHOUT_BOS, WITHOUT_MEMBERS, WITHOUT_SPANS, FORMAT_VERSION):
            raise DataError(
                f"{name}: has format version {quote(version)}; this lmscale reads "
                f"{WITHOUT_BOS} to {FORMAT_VERSION}. Build the shards again."
            )
        fingerprint = tree.pop("fingerprint")
        shards = tuple(ShardEntry(**entry) for entry in tree["shards"])
        values = {name: value for name, value in tree.items() if name != "version"}
        if "labels" in values:
            values["labels"] = checked(_LABELS, values["labels"], at="labels")
        if values.get("has_pairs", True) is not True:
            raise ValueError(f"has_pairs is {quote(values['has_pairs'])}")
        template = values.get("chat_template", " ")
        if not isinstance(template, str) or not template:
            raise ValueError(f"chat_template is {quote(template)}")
        manifest = Manifest(**{**values, "shards": shards})
        has_members, has_spans = (WITHOUT_SPANS, FORMAT_VERSION), (FORMAT_VERSION,)
        if (manifest.version in has_spans) != (version in has_spans):
            raise ValueError(
                f"answers and dialogues belong to version {FORMAT_VERSION}, and to no other"
            )
        if (manifest.version in has_members) != (version in has_members):
            raise ValueError(f"pairs and labels belong to version {WITHOUT_SPANS}, and to no other")
        if manifest.version != version or (manifest.bos_id is None and "bos_id" in tree):
            raise ValueError(f"bos_id does not fit version {version}")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{name}: not a manifest of shards: {error}.") from None
    if manifest.dtype not in ("uint16", "uint32"):
        raise DataError(f"{name}: dtype {quote(manifest.dtype)} is neither uint16 nor uint32.")
    lies = [*_find_odd_values(manifest), *_find_odd_shards(shards)]
    if not lies:
        lies = [*_find_impossible_ids(manifest), *_find_impossible_counts(manifest)]
    if lies:
        raise DataError([f"{name}: {why}; it is refused." for why in lies[:MAX_NAMED]])
    # Of the very values that were read: rendering so many shards again takes longer than the rest.
    if _fingerprint(tree) != fingerprint:
        raise DataError(
            f"{name}: does not match its own fingerprint: it was edited or damaged. Build the "
            f"shards again, or restore the file."
        )
    vars(manifest)["fingerprint"] = fingerprint  # where ``cached_property`` looks
    return manifest


_LABELS = TypeAdapter(LabelSet)
_ABSENT = {"bos_id": None, "has_pairs": False, "labels": None, "chat_template": ""}
_WITH_OWN_RULES = {"name", "shards", "has_pairs", "labels", "chat_template"}


def _to_tree(manifest: Manifest) -> dict[str, Any]:
    """What ``asdict`` gives, sooner: it copies every value of every shard. And the version."""
    tree = {each.name: getattr(manifest, each.name) for each in fields(manifest)}
    # A manifest is as before there was any of them.
    for name, absent in _ABSENT.items():
        if tree[name] == absent:
            del tree[name]
    if manifest.labels is not None:
        tree["labels"] = {"kind": manifest.labels.kind, "names": list(manifest.labels.names)}
    shards = [dict(vars(entry)) for entry in manifest.shards]
    return {"version": manifest.version, **tree, "shards": shards}


def _fingerprint(tree: Mapping[str, Any]) -> str:
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _find_odd_values(part: Manifest | ShardEntry) -> Iterator[str]:
    """By the types that the fields are declared with; text will be shown."""
    for each in fields(part):
        value = getattr(part, each.name)
        if each.name in _WITH_OWN_RULES:
            continue
        if each.name == "sha256":
            is_sound = is_sha256(value)
        elif each.name == "bos_id":
            is_sound = value is None or is_count(value)
        elif each.type == "int":
            is_sound = is_count(value)
        else:
            is_sound = isinstance(value, str) and value.isprintable()
        if not is_sound:
            yield f"{each.name} is {quote(value)}"


def _find_odd_shards(shards: Sequence[ShardEntry]) -> Iterator[str]:
    """Names and values that no shard has, of each shard the first ones."""
    for number, entry in enumerate(shards):
        if why := describe_unsafe_name(entry.name):
            yield why
        counts = (entry.bytes, entry.tokens, entry.documents, entry.blocks)
        counts += (entry.text_bytes, entry.index_offset)
        # Of hundreds of thousands hardly one is odd; which value it is can take its time.
        if not (all(map(is_count, counts)) and is_sha256(entry.sha256)):
            yield from (f"of shard {number} the {why}" for why in _find_odd_values(entry))


def _find_impossible_ids(manifest: Manifest) -> Iterator[str]:
    most = 2 ** (8 * np.dtype(manifest.dtype).itemsize)
    if not 0 < manifest.vocab_size <= most:
        yield f"vocab_size is {manifest.vocab_size}, and {manifest.dtype} holds {most:,} ids"
    for name in ("bos_id", "eos_id", "pad_id"):
        if (getattr(manifest, name) or 0) >= manifest.vocab_size:
            yield f"{name} is {getattr(manifest, name)}, outside the vocabulary"


def _find_impossible_counts(manifest: Manifest) -> Iterator[str]:
    """Shards that hold more than their bytes can, so that every sum of counts stays in int64."""
    names = ("bytes", "tokens", "documents", "blocks", "index_offset")
    counts = np.array(
        [[getattr(entry, name) for name in names] for entry in manifest.shards], dtype=np.int64
    ).reshape(-1, len(names))
    num_bytes, tokens, documents, blocks, index_offset = counts.T
    itemsize = np.dtype(manifest.dtype).itemsize
    is_odd = (tokens > num_bytes // itemsize) | (documents > tokens) | (blocks > documents)
    is_odd |= (blocks < 1) | (index_offset >= num_bytes)
    for number in np.flatnonzero(is_odd)[:MAX_NAMED].tolist():
        entry = manifest.shards[number]
        yield (
            f"of shard {number} the counts cannot be: {entry.tokens:,} tokens in "
            f"{entry.documents:,} documents and {entry.blocks:,} blocks, with the index at byte "
            f"{entry.index_offset:,} of {entry.bytes:,}"
        )
    for name in ("bytes", "text_bytes"):
        if not is_count(total := sum(getattr(entry, name) for entry in manifest.shards)):
            yield f"the {name} of all shards are {total:,} together"
