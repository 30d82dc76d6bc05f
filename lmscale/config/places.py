"""The places that a configuration names, made absolute: the same from wherever it is read."""

from __future__ import annotations

from lmscale.config.run import RunConfig
from lmscale.files.locations import absolute_location


def with_absolute_places(config: RunConfig) -> RunConfig:
    """The same configuration for a process that starts elsewhere.

    ``corpus.sources`` keep their inputs as they stand: a built corpus is known by them, and would
    count as built from other files.
    """
    tree = config.model_dump(mode="json")
    tree["run"]["folder"] = absolute_location(str(config.folder))
    folder, step = config.run.initial_run
    if config.run.init_from:
        tree["run"]["init_from"] = absolute_location(str(folder)) + (
            "" if step is None else f"@{step}"
        )
    for section in ("corpus", "tokenizer", "shards"):
        tree[section]["folder"] = absolute_location(tree[section]["folder"])
    saves = tree["checkpoint"]
    saves["folder"] = saves["folder"] and absolute_location(saves["folder"])
    local = saves["local"]
    if local["folder"] and not local["folder"].startswith("$"):  # every node's own, at run time
        local["folder"] = absolute_location(local["folder"])
    cache = tree["stream"]["cache"]
    cache["folder"] = cache["folder"] and absolute_location(cache["folder"])
    for source in tree["stream"]["sources"].values():
        source["shards"] = absolute_location(source["shards"])
    sets = tree["evaluation"]["sets"]
    tree["evaluation"]["sets"] = {name: absolute_location(place) for name, place in sets.items()}
    return RunConfig.model_validate(tree)
