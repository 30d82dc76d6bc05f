"""The held-out sets of a run, opened and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable

from lmscale.config import RunConfig
from lmscale.errors import ConfigError, DataError, LmscaleError, TransientError
from lmscale.stream.dataset import Dataset, open_dataset


def open_evaluation_sets(
    config: RunConfig,
    tokenizer_fingerprint: str,
    names: Iterable[str] | None = None,
    *,
    check_files: bool = True,
) -> dict[str, Dataset]:
    """The sets by name, all of them or those named; the caller closes them.

    ``check_files``: look for every shard now; one rank is enough.

    Raises every set's problems at once: unknown, missing, damaged, of another tokenizer.
    """
    sets = config.evaluation.sets
    names = list(sets) if names is None else list(names)
    unknown = [name for name in names if name not in sets]
    if unknown:
        listed = ", ".join(sets) or "none"
        raise ConfigError(
            [f"evaluation.sets has no set {name!r}. Known: {listed}." for name in unknown]
        )
    datasets: dict[str, Dataset] = {}
    problems: list[str] = []
    may_pass = True
    for name in names:
        try:
            datasets[name] = _open_set(config, name, tokenizer_fingerprint, check_files)
        except LmscaleError as error:
            problems += [f"evaluation.sets.{name}: {problem}" for problem in error.problems]
            may_pass = may_pass and isinstance(error, TransientError)
    if problems:
        for dataset in datasets.values():
            dataset.close()
        raise (TransientError if may_pass else DataError)(problems)
    return datasets


def _open_set(
    config: RunConfig, name: str, tokenizer_fingerprint: str, check_files: bool
) -> Dataset:
    stream = config.stream
    dataset = open_dataset(
        config.evaluation.sets[name],
        sequence_length=stream.sequence_length,
        packing=stream.packing,
        cache=stream.cache,
        verify_hashes=stream.verify_hashes,
        check_files=check_files,
    )
    if dataset.manifest.tokenizer_fingerprint != tokenizer_fingerprint:
        dataset.close()
        raise DataError(
            f"{config.evaluation.sets[name]} was made with the tokenizer "
            f"{dataset.manifest.tokenizer_fingerprint[:12]}, but the run's is "
            f"{tokenizer_fingerprint[:12]} ({config.tokenizer.folder}). Build its shards with "
            "that one."
        )
    return dataset
