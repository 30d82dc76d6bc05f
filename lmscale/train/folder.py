"""The run folder is claimed before anything is written to it, and keeps what ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmscale.config import RunConfig, dump_config, load_config
from lmscale.errors import CheckpointError, ConfigError, LmscaleError
from lmscale.runtime.atomic import write_bytes, writing
from lmscale.runtime.collectives import failing_together
from lmscale.runtime.environment import save_provenance
from lmscale.runtime.ranks import Ranks

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.yaml"
# What a launcher may have put there before the first rank came.
_HARMLESS = {"logs", "stop", "slurm"}
# Settings of the model that may change between restarts: they do not change what is computed.
_FREE_MODEL_KEYS = {"activation_checkpoint_every", "attention", "dropout"}


def identity_of(config: RunConfig, tokenizer_fingerprint: str) -> dict[str, Any]:
    """What must stay the same over a run's restarts, as checkpoints carry it."""
    model = config.model.model_dump(mode="json", exclude=_FREE_MODEL_KEYS)
    model["vocab_size"], model["max_positions"] = config.vocab_size, config.max_positions
    return {"run": config.run.name, "tokenizer": tokenizer_fingerprint, "model": model}


def check_identity(saved: dict[str, Any], now: dict[str, Any], *, where: str) -> None:
    """Raise ``CheckpointError`` naming every setting by which a checkpoint is of another run."""
    before, after = _flatten(saved), _flatten(now)
    problems = [
        f"{where}: {key} was {before.get(key)!r} when it was written and is {after.get(key)!r} now."
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if problems:
        problems.append("Give this run a folder of its own (run.folder), or set these back.")
        raise CheckpointError(problems)


def claim_folder(config: RunConfig, ranks: Ranks) -> None:
    """Refuse another run's folder, before anything is written to it. All ranks together.

    Raises ``ConfigError`` on all ranks.
    """
    with failing_together():
        if ranks.is_first:
            _check_folder(config.folder, config)


def freeze_run(config: RunConfig) -> None:
    """Write what runs: config.yaml, code.json, environment.json.

    Rank 0 only, and only once nothing can refuse to start any more: until then the folder tells of
    the attempt before.
    """
    folder = config.folder
    with writing("the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / CONFIG_FILE, dump_config(_with_absolute_paths(config)).encode())
        save_provenance(folder)


def _check_folder(folder: Path, config: RunConfig) -> None:
    frozen = folder / CONFIG_FILE
    if frozen.is_file():
        owner = _owner_of(frozen)
        if owner is not None and owner != config.run.name:
            raise ConfigError(
                f"{folder} is the folder of the run {owner!r}, not of {config.run.name!r}. Set "
                f"run.folder to another place, or run.name to {owner!r} to go on with that run."
            )
    elif folder.is_dir():
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in _HARMLESS)
        if foreign:
            raise ConfigError(
                f"{folder} is not empty and holds no run (found {', '.join(foreign[:3])}). "
                "Set run.folder to an empty or new place."
            )
    elif folder.exists():
        raise ConfigError(f"{folder} is a file; run.folder must name a folder.")


def _owner_of(frozen: Path) -> str | None:
    try:
        return load_config(frozen).run.name
    except LmscaleError:
        return None  # written by another version, or damaged: it is written anew


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration from wherever ``lmscale evaluate`` and ``audit`` are called."""
    tree = config.model_dump(mode="json")
    tree["run"]["folder"] = _absolute(str(config.folder))
    for section in ("corpus", "tokenizer", "shards"):
        tree[section]["folder"] = _absolute(tree[section]["folder"])
    for source in tree["stream"]["sources"].values():
        source["shards"] = _absolute(source["shards"])
    sets = tree["evaluation"]["sets"]
    tree["evaluation"]["sets"] = {name: _absolute(place) for name, place in sets.items()}
    return RunConfig.model_validate(tree)


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().absolute())


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
