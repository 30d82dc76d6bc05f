"""Whether a corpus was built from other settings than a configuration says now."""

from __future__ import annotations

from pathlib import Path

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import settings_of
from lmscale.corpus.documents import load_corpus_manifest
from lmscale.corpus.page_encoding import AUTO
from lmscale.errors import LmscaleError


def find_stale_corpus(config: CorpusConfig) -> list[str]:
    """A line for each source that was built from other settings. Only reads its manifest: raw files
    that have changed are not looked for. A source that is not there, or damaged, is passed over.
    """
    lines: list[str] = []
    for name in config.sources:
        folder = Path(config.folder) / name
        try:
            old = load_corpus_manifest(folder).made_by
        except LmscaleError:
            continue
        new = settings_of(config, name)
        if old.get("encoding") == AUTO == config.sources[name].encoding:
            new["encoding"] = AUTO
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if changed:
            lines.append(
                f"{folder}: was built from other settings ({', '.join(changed)}) than the "
                "configuration's, and is used as it is. To build it anew: lmscale corpus build "
                "CONFIG --force, then the shards as well."
            )
    return lines
