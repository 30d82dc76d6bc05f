"""Check a dataset on disk against its manifest: every problem, with the shard's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lmscale.errors import DataError
from lmscale.files.meter import metered
from lmscale.files.reading import sha256_file
from lmscale.shards.contents import find_tar_problems, find_token_problems
from lmscale.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, load_manifest
from lmscale.shards.reader import open_shard

_LOOKS_RIGHT = "its token ids and document ends look right, so the place is not known"


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


def count_bytes(folder: Path) -> int | None:
    """Of all its shards; None where its manifest cannot be read, which ``verify_dataset`` tells."""
    try:
        return sum(entry.bytes for entry in load_manifest(folder).shards)
    except DataError:
        return None


def verify_dataset(
    folder: str | Path,
    *,
    deep: bool = True,
    advance: Callable[[float], None] = lambda num_bytes: None,
) -> list[str]:
    """Problems of a dataset; empty when it is sound. ``advance`` hears of the bytes looked at.

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
        with metered(entry.bytes, advance):
            problems += _verify_shard(folder / entry.name, entry, manifest, deep)
    listed = {folder / entry.name for entry in manifest.shards}
    return problems + [
        f"{path}: is not in the manifest; it is never read. Move it away."
        for path in sorted(set(folder.glob("*.tar")) - listed)
    ]


def _verify_shard(path: Path, entry: ShardEntry, manifest: Manifest, deep: bool) -> list[str]:
    try:
        shard = open_shard(path, entry, manifest.dtype, manifest.members)
    except DataError as error:
        return list(error.problems)
    if deep and (digest := sha256_file(path)) != entry.sha256:
        where = "; ".join(find_token_problems(shard, manifest)) or _LOOKS_RIGHT
        return [
            f"{path}: the shard is damaged: its sha256 is {digest[:12]}…, the manifest says "
            f"{entry.sha256[:12]}… ({where}). Fetch or build it again."
        ]
    problems = find_tar_problems(path, shard, entry, manifest)
    if deep:
        problems += find_token_problems(shard, manifest)
    return [f"{path}: {problem}." for problem in problems]
