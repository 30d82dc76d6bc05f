"""One look at all of a shard: what its tar and its tokens say against the manifest.

``verify_dataset`` and, once a node, the stream make the same checks, so neither takes what the
other refuses.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from lmscale.errors import DataError
from lmscale.files.arrays import NPY_HEADER_BYTES
from lmscale.files.strangers import is_count, parse_json
from lmscale.files.tar_members import BoundedMember, describe_unsafe
from lmscale.shards.manifest import MAX_NAMED, Manifest, ShardEntry
from lmscale.shards.members import find_wrong_values
from lmscale.shards.reader import MappedShard, open_shard
from lmscale.shards.writer import INDEX_MEMBER


def check_shard(path: Path, entry: ShardEntry, manifest: Manifest) -> None:
    """Raises ``DataError`` with everything that a shard with the right hash lies about."""
    shard = open_shard(path, entry, manifest.dtype, manifest.members)
    problems = find_tar_problems(path, shard, entry, manifest)
    problems += find_token_problems(shard, manifest)
    if problems:
        raise DataError([f"{path}: {problem}. Build it again." for problem in problems[:MAX_NAMED]])


def find_tar_problems(
    path: Path, shard: MappedShard, entry: ShardEntry, manifest: Manifest
) -> list[str]:
    """What the tar's own headers say against the index."""
    problems = []
    try:
        with tarfile.open(path, mode="r:", tarinfo=BoundedMember) as tar:
            members = tar.getmembers()
            unsafe = [why for member in members if (why := describe_unsafe(member))]
            if unsafe:
                return [*unsafe[:MAX_NAMED], "the tar is not one that lmscale has written"]
            metas = [
                parse_json(tar.extractfile(member).read())  # pyright: ignore[reportOptionalMemberAccess]  # a regular file
                for member in members
                if member.isreg() and member.name.endswith(".meta.json")
            ]
    except (tarfile.TarError, OverflowError, ValueError, OSError, EOFError) as error:
        return [f"the tar cannot be read: {error}"]
    offsets = {member.name: member.offset_data for member in members}
    if not members or members[-1].name != INDEX_MEMBER:
        problems.append(f"the last member is not {INDEX_MEMBER}")
    places = {"tokens": shard.index[:, 0], "docs": shard.index[:, 2], **shard.places}
    for kind, values_at in places.items():
        found = [at for name, at in offsets.items() if name.endswith(f".{kind}.npy")]
        if found != (values_at - NPY_HEADER_BYTES).tolist():
            problems.append(f"the members of {kind} do not lie where the index says")
    if not all(isinstance(meta, dict) for meta in metas):
        return [*problems, "a block's meta.json is not a JSON object"]
    counts = [(meta.get("tokens"), meta.get("documents")) for meta in metas]
    if counts != [(int(row[1]), int(row[3])) for row in shard.index]:
        problems.append("the counts in the blocks' meta.json differ from the index")
    text_bytes = [meta.get("text_bytes") for meta in metas]
    if not all(map(is_count, text_bytes)) or sum(text_bytes) != entry.text_bytes:
        problems.append(
            f"the blocks' meta.json do not make the {entry.text_bytes:,} bytes of text that the "
            "manifest counts"
        )
    if any(meta.get("tokenizer") != manifest.tokenizer_fingerprint for meta in metas):
        problems.append("a block was made with another tokenizer than the manifest names")
    return problems


def find_token_problems(shard: MappedShard, manifest: Manifest) -> list[str]:
    """Ids outside the vocabulary, documents that do not begin or end as the manifest says, and what
    cannot be said of any.
    """
    problems = []
    for block in range(shard.num_blocks):
        tokens, docs = shard.tokens(block), shard.docs(block)
        if (most := tokens.max()) >= manifest.vocab_size:
            problems.append(
                f"block {block}: token id {most} is outside the vocabulary of "
                f"{manifest.vocab_size:,}"
            )
        if (tokens[docs[1:] - 1] != manifest.eos_id).any():
            problems.append(f"block {block}: a document does not end with eos")
        if manifest.bos_id is not None and (tokens[docs[:-1]] != manifest.bos_id).any():
            problems.append(f"block {block}: a document does not begin with bos")
        values = {name: shard.values(name, block) for name in shard.members}
        wrong = find_wrong_values(values, docs, manifest.labels)
        problems += [f"block {block}: {problem}" for problem in wrong]
    return problems
