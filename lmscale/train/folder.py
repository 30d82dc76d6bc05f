"""The run folder is claimed before anything is written to it, and keeps what ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lmscale.config import RunConfig, dump_config
from lmscale.config.ownership import CONFIG_FILE, check_folder
from lmscale.errors import CheckpointError, ConfigError
from lmscale.runtime.atomic import write_bytes, writing
from lmscale.runtime.collectives import failing_together
from lmscale.runtime.environment import save_provenance
from lmscale.runtime.ranks import Ranks
from lmscale.runtime.remote import absolute_location

CHECKPOINTS = "checkpoints"
LOCK_SECONDS = 10.0
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


@contextmanager
def claim_folder(config: RunConfig, ranks: Ranks) -> Iterator[None]:
    """Hold the run's folder for the time of the block. All ranks together.

    Raises ``ConfigError`` on all ranks when the folder is another run's, before anything is written
    to it, or when another process trains in it.
    """
    with ExitStack() as stack:
        with failing_together():
            if ranks.is_first:
                check_folder(config.folder, config)
                _lock(config.folder, stack)
        yield


def _lock(folder: Path, stack: ExitStack) -> None:
    """Two trainings in one folder would undo each other's checkpoints. A kill frees the lock."""
    with writing("the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            # A rank that was just killed may take a moment to be gone.
            stack.enter_context(lock.acquire(timeout=LOCK_SECONDS))
        except Timeout:
            raise ConfigError(
                f"{folder}: another `lmscale train` is running in this folder. Wait until it ends, "
                "stop it (touch the file `stop` in the folder), or set run.folder to another place."
            ) from None


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


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration from wherever ``lmscale evaluate`` and ``audit`` are called."""
    tree = config.model_dump(mode="json")
    tree["run"]["folder"] = absolute_location(str(config.folder))
    for section in ("corpus", "tokenizer", "shards"):
        tree[section]["folder"] = absolute_location(tree[section]["folder"])
    for source in tree["stream"]["sources"].values():
        source["shards"] = absolute_location(source["shards"])
    sets = tree["evaluation"]["sets"]
    tree["evaluation"]["sets"] = {name: absolute_location(place) for name, place in sets.items()}
    return RunConfig.model_validate(tree)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
