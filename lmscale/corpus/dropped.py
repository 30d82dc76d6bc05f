"""Which documents of a source were dropped, and why: by reading its raw files once more.

The rules are pure and the files the same, as the manifest's key says, so what is found is what the
build has dropped. A corpus need not carry the list, which of a crawl is longer than its documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.broken import Broken
from lmscale.corpus.build import SourceTarget, plan_sources
from lmscale.corpus.cleaner import Cleaner, Fate
from lmscale.errors import ConfigError, DataError
from lmscale.files.meter import metered
from lmscale.files.progress import BYTES, progress

DUPLICATE, BROKEN = "duplicate", "broken"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A document that is not in the corpus."""

    source: str
    id: str
    """Its raw file's name and record."""
    reason: str
    same_as: str = ""
    """Of a duplicate: the document that was kept."""
    detail: str = ""
    """Of a broken record: what is wrong with it."""


def list_dropped(config: CorpusConfig, source: str) -> Iterator[Dropped]:
    """Every document of a built source that was dropped, in the order of the raw files.

    Memory holds a digest and an id of each document that was kept. Raises ``ConfigError`` for no
    source, ``DataError`` where it was built from other settings or files, or not at all.
    """
    targets = plan_sources(config)
    if source not in targets:
        raise ConfigError(f"--source {source}: there is none. Known: {', '.join(targets)}.")
    target = targets[source]
    manifest = target.load(target.final)
    if manifest.key != target.key:
        raise DataError(
            f"{target.final}: was built {target.describe_difference(manifest)[:-1]}, so what it "
            "dropped cannot be told. Build the corpus again."
        )
    counts = Counter[str]()
    total = sum(part.bytes for part in target.units)
    with progress(f"reading {source}", total, BYTES) as advance, metered(total, advance):
        for each in _list_all(target):
            counts[each.reason] += 1
            yield each
    if counts != Counter(manifest.dropped):
        raise DataError(
            f"{target.final}: its manifest counts {dict(manifest.dropped)}, and here are "
            f"{dict(counts)}: the raw files have changed while they were read. Do it again."
        )


def _list_all(target: SourceTarget) -> Iterator[Dropped]:
    kept: dict[bytes, str] = {}
    told: list[Fate | Broken] = []
    for part in target.units:
        cleaner = Cleaner(part.source, part.config, part.files, told.append)
        for _ in cleaner.documents():
            yield from _settle(target, told, kept)
        yield from _settle(target, told, kept)


def _settle(
    target: SourceTarget, told: list[Fate | Broken], kept: dict[bytes, str]
) -> Iterator[Dropped]:
    """Those of what was read since the last time that are not in the corpus. A part keeps what an
    earlier one has as well; the end of the build takes the later copy out.
    """
    for each in told:
        if isinstance(each, Broken):
            what = f"{each.what}: {each.detail}" if each.detail else each.what
            yield Dropped(source=target.name, id=each.where, reason=BROKEN, detail=what)
            continue
        reason = each.reason
        if reason is None and target.config.drop_exact_duplicates:
            reason = DUPLICATE if each.digest in kept else None
            kept.setdefault(each.digest, each.id)
        if reason is not None:
            same_as = kept[each.digest] if reason == DUPLICATE else ""
            yield Dropped(source=target.name, id=each.id, reason=reason, same_as=same_as)
    told.clear()
