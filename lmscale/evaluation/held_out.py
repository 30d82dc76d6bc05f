"""The held-out sets of a run, opened and checked. Loads no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from lmscale.config import RunConfig
from lmscale.errors import ConfigError, DataError
from lmscale.runs.held_out_sets import find_replaced
from lmscale.runs.run_folder import load_run_config
from lmscale.stream.dataset import Dataset, open_datasets
from lmscale.stream.overlong import describe_overlong
from lmscale.tokenizer.codec import load_kept_tokenizer
from lmscale.tokenizer.kept_template import load_kept_template

logger = logging.getLogger(__name__)


def open_evaluation_sets(
    config: RunConfig,
    tokenizer_fingerprint: str,
    names: Iterable[str] | None = None,
    *,
    check_files: bool = True,
) -> dict[str, Dataset]:
    """The sets by name, all of them or those named; the caller closes them.

    ``check_files``: look for every shard now; one rank is enough. Raises every set's problems at
    once: unknown, missing, damaged, of another tokenizer.
    """
    sets = config.evaluation.sets
    names = list(sets) if names is None else list(names)
    unknown = [name for name in names if name not in sets]
    if unknown:
        listed = ", ".join(sets) or "none"
        raise ConfigError(
            [f"evaluation.sets has no set {name!r}. Known: {listed}." for name in unknown]
        )

    def check_tokenizer(dataset: Dataset) -> None:
        made_with = dataset.manifest.tokenizer_fingerprint
        if made_with != tokenizer_fingerprint:
            raise DataError(
                f"{dataset.location} was made with the tokenizer {made_with[:12]}, but the run's "
                f"is {tokenizer_fingerprint[:12]} ({config.tokenizer.folder}). Build its shards "
                "with that one."
            )

    return open_datasets(
        config.stream,
        {name: sets[name] for name in names},
        shape=config.window,
        section="evaluation.sets",
        check=check_tokenizer,
        check_files=check_files,
    )


def check_evaluation_sets(run: Path, names: Iterable[str] | None) -> None:
    """Raise the errors of a run's sets that are not there or do not fit, before a model is loaded;
    ``ConfigError`` where it has none.
    """
    config = load_run_config(run)
    if not config.evaluation.sets:
        raise ConfigError(
            f"{run}: its config.yaml names no evaluation.sets; add at least one, "
            "NAME: folder of shards."
        )
    tokenizer = load_kept_tokenizer(run, config.tokenizer.folder)
    for dataset in open_evaluation_sets(config, tokenizer.fingerprint, names).values():
        dataset.close()


def find_other_templates(datasets: Mapping[str, Dataset], run: Path) -> list[str]:
    """The sets of dialogues that were written by another chat template than the run's."""
    kept = load_kept_template(run)
    return [
        f"evaluation.sets.{name}: its dialogues were written by another chat template than those "
        "of the run. Build its shards again with the same tokenizer.chat_template."
        for name, dataset in datasets.items()
        if dataset.shape.has_turns and dataset.manifest.chat_template != kept
    ]


def warn_of_replaced(datasets: Mapping[str, Dataset], run: Path) -> None:
    """Name the sets whose shards are other ones than those that the run itself has measured."""
    fingerprints = {name: dataset.manifest.fingerprint for name, dataset in datasets.items()}
    for replaced in find_replaced(run, fingerprints):
        logger.warning(
            "%s: these figures are of other texts, and say nothing beside the run's own.",
            replaced.described,
        )


def warn_of_other_writing(
    datasets: Mapping[str, Dataset], run: Path, *, bos_id: int | None
) -> None:
    """Name the sets whose documents begin otherwise (with or without bos) than the run's, are
    dialogues by another chat template, or are in part left out.
    """
    for told in describe_overlong(datasets, "evaluation.sets"):
        logger.warning("%s", told)
    for problem in find_other_templates(datasets, run):
        logger.warning("%s", problem)
    for name, dataset in datasets.items():
        if dataset.manifest.bos_id != bos_id:
            logger.warning(
                "evaluation.sets.%s: its documents begin with bos = %s, those that the run learns "
                "from with %s: a beginning that the model does not know. Build its shards again, "
                "with shards.bos: %s.",
                *(name, dataset.manifest.bos_id, bos_id, str(bos_id is not None).lower()),
            )
