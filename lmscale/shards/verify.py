"""Check a dataset on disk against its manifest: every problem, with the shard's name."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np

from lmscale.errors import DataError
from lmscale.files.atomic import sha256_file
from lmscale.files.tar_members import describe_unsafe
from lmscale.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, load_manifest
from lmscale.shards.reader import MappedShard, open_shard
from lmscale.shards.writer import INDEX_MEMBER, NPY_HEADER_BYTES

MAX_NAMED = 8  # members named one by one


def find_datasets(folder: str | Path) -> list[Path]:
    """The folder itself, or all datasets below ``folder``. Raises ``DataError`` without any."""
    folder = Path(folder)
    if (folder / MANIFEST_NAME).is_file():
        return [folder]
    below = sorted(path.parent.relative_to(folder) for path in folder.rglob(MANIFEST_NAME))
    datasets = [folder / path for path in below if not any(p.startswith(".") for p in path.parts)]
    if not datasets:
        raise DataError(
            f"{folder}: there is no dataset here or below. Run `lmscale shards build CONFIG` "
            f"first, or correct the path."
        )
    return datasets


def verify_dataset(folder: str | Path, *, deep: bool = True) -> list[str]:
    """Problems of a dataset; empty when it is sound.

    Sizes, the tar's headers against the index, document offsets, counts, and, if ``deep``, every
    byte: sha256, token ids and the end of each document.
    """
    folder = Path(folder)
    try:
        manifest = load_manifest(folder)
    except DataError as error:
        return list(error.problems)
    problems = []
    for entry in manifest.shards:
        problems += _verify_shard(folder / entry.name, entry, manifest, deep)
    listed = {folder / entry.name for entry in manifest.shards}
    return problems + [
        f"{path}: is not in the manifest; it is never read. Move it away."
        for path in sorted(set(folder.glob("*.tar")) - listed)
    ]


def _verify_shard(path: Path, entry: ShardEntry, manifest: Manifest, deep: bool) -> list[str]:
    try:
        shard = open_shard(path, entry, manifest.dtype)
    except DataError as error:
        return list(error.problems)
    if deep and (digest := sha256_file(path)) != entry.sha256:
        where = (
            "; ".join(_content_problems(path, shard, manifest)) or "in a place no check looks at"
        )
        return [
            f"{path}: the shard is damaged: its sha256 is {digest[:12]}…, the manifest says "
            f"{entry.sha256[:12]}… ({where}). Fetch or build it again."
        ]
    problems = _tar_problems(path, shard, manifest)
    if deep:
        problems += _content_problems(path, shard, manifest)
    return [f"{path}: {problem}." for problem in problems]


def _tar_problems(path: Path, shard: MappedShard, manifest: Manifest) -> list[str]:
    """What the tar's own headers say against the index."""
    problems = []
    try:
        with tarfile.open(path, mode="r:") as tar:
            members = tar.getmembers()
            unsafe = [why for member in members if (why := describe_unsafe(member))]
            if unsafe:
                return [*unsafe[:MAX_NAMED], "the tar is not one that lmscale has written"]
            metas = [
                json.loads(tar.extractfile(member).read())  # pyright: ignore[reportOptionalMemberAccess]  # a regular file
                for member in members
                if member.isreg() and member.name.endswith(".meta.json")
            ]
    except (tarfile.TarError, ValueError, OSError, EOFError, RecursionError) as error:
        return [f"the tar cannot be read: {error}"]
    offsets = {member.name: member.offset_data for member in members}
    if not members or members[-1].name != INDEX_MEMBER:
        problems.append(f"the last member is not {INDEX_MEMBER}")
    for kind, column in (("tokens", 0), ("docs", 2)):
        found = [at for name, at in offsets.items() if name.endswith(f".{kind}.npy")]
        if found != (shard.index[:, column] - NPY_HEADER_BYTES).tolist():
            problems.append(f"the members of {kind} do not lie where the index says")
    if not all(isinstance(meta, dict) for meta in metas):
        return [*problems, "a block's meta.json is not a JSON object"]
    counts = [(meta.get("tokens"), meta.get("documents")) for meta in metas]
    if counts != [(int(row[1]), int(row[3])) for row in shard.index]:
        problems.append("the counts in the blocks' meta.json differ from the index")
    if {meta.get("tokenizer") for meta in metas} != {manifest.tokenizer_fingerprint}:
        problems.append("a block was made with another tokenizer than the manifest names")
    return problems


def _content_problems(path: Path, shard: MappedShard, manifest: Manifest) -> list[str]:
    """What the arrays say: ids, document offsets, the end of every document."""
    problems = []
    for block in range(shard.num_blocks):
        tokens, docs = shard.tokens(block), shard.docs(block)
        if docs[0] != 0 or docs[-1] != len(tokens) or (np.diff(docs) < 1).any():
            problems.append(f"block {block}: the document offsets do not ascend from 0 to its end")
            continue
        if (tokens >= manifest.vocab_size).any():
            problems.append(
                f"block {block}: token id {tokens.max()} is outside the vocabulary of "
                f"{manifest.vocab_size:,}"
            )
        if (tokens[docs[1:] - 1] != manifest.eos_id).any():
            problems.append(f"block {block}: a document does not end with eos")
    return problems
