"""Whether the datasets that a run reads were built from what its configuration names now."""

from __future__ import annotations

from lmscale.config import RunConfig
from lmscale.corpus.stale import find_stale_corpus
from lmscale.errors import LmscaleError
from lmscale.files.locations import is_remote, local_path
from lmscale.shards.build import plan_datasets
from lmscale.shards.manifest import load_manifest
from lmscale.tokenizer.codec import load_configured


def find_stale_data(config: RunConfig) -> list[str]:
    """A line for each source of ``corpus`` built from other settings, and for each dataset that the
    run reads and that ``lmscale shards build`` would build otherwise. Where the corpus or the
    tokenizer is not there to compare with, or damaged, none.
    """
    return find_stale_corpus(config.corpus) + _find_stale_shards(config)


def _find_stale_shards(config: RunConfig) -> list[str]:
    places = [source.shards for source in config.stream.sources.values() if source.weight > 0]
    places += config.evaluation.sets.values()
    read = {local_path(place).resolve() for place in places if not is_remote(place)}
    lines: list[str] = []
    try:
        datasets = plan_datasets(config, load_configured(config.tokenizer))
    except LmscaleError:
        return []
    for dataset in datasets:
        if dataset.final.resolve() not in read:
            continue
        try:
            manifest = load_manifest(dataset.final)
        except LmscaleError:
            continue  # which whoever reads it tells
        if manifest.inputs != dataset.key:
            difference = dataset.describe_difference(manifest).partition(". ")[0].removesuffix(".")
            lines.append(
                f"{dataset.final}: was built {difference} than now in {dataset.documents}, and is "
                "used as it is. To build it anew: lmscale shards build CONFIG --force."
            )
    return lines
