"""The ranks that score a checkpoint together: those of srun or torchrun, or one alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmscale.errors import ConfigError, LmscaleError, TransientError
from lmscale.files.progress import progress

if TYPE_CHECKING:
    import torch

    from lmscale.config.training import Weights
    from lmscale.evaluation.found import FoundRun
    from lmscale.evaluation.harness import Tasks
    from lmscale.evaluation.run import LoadedRun
    from lmscale.ranks.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class ModelAsked:
    """Which weights a command is to take: a checkpoint's, or with ``hf`` another program's."""

    run: Path
    step: int | None
    weights: Weights | None
    hf: Path | None = None


def find_ranks(run: Path) -> Ranks:
    """This process's place, before torch is loaded; what other ranks print goes to the run's logs.

    Raises ``ConfigError`` or ``ClusterError``.
    """
    from launcher.rank import join_step, redirect_output
    from lmscale.ranks.ranks import ranks_from_environment

    is_step = join_step(os.environ)
    ranks = ranks_from_environment()
    if is_step and run.is_dir():  # else it is told, and no folder is made
        redirect_output(run, ranks.rank)
    return ranks


def refuse_on_many(ranks: Ranks, baseline: str | None) -> None:
    """Raise ``ConfigError`` for what one rank alone can do."""
    if ranks.world_size > 1 and baseline:
        raise ConfigError(
            f"--baseline {baseline} counts what the run has read, which one rank does alone: leave "
            "it out here, and give it to another command without srun or torchrun."
        )


@contextmanager
def open_ranks(ranks: Ranks) -> Iterator[torch.device]:
    """The rank's device, in a group with the others where there are others."""
    with shown(ranks, "loading torch"):
        from lmscale.ranks.device import select_device
        from lmscale.ranks.ranks import is_lost_connection, open_process_group
    device = select_device(ranks)
    if ranks.world_size == 1:
        yield device
        return
    try:
        with open_process_group(ranks, device):
            yield device
    except Exception as error:
        if isinstance(error, LmscaleError) or not is_lost_connection(error):
            raise
        raise TransientError(
            "Another rank ended, or cannot be reached any more: nothing was scored. That rank's "
            "own words say why; under srun they are in RUN/logs."
        ) from error


def find_asked(asked: ModelAsked, ranks: Ranks) -> FoundRun | None:
    """Raise what is wrong before torch is loaded. The checkpoint, of a rank that is alone; several
    find it together, in ``load_asked``.
    """
    from lmscale.evaluation.found import check_step, find_run

    if asked.hf is not None:
        from lmscale.exchange.import_config import read_source_config

        read_source_config(asked.hf)
    elif ranks.world_size > 1:
        check_step(asked.run, asked.step)
    else:
        with progress("looking at the checkpoint"):  # at every byte
            return find_run(asked.run, step=asked.step, weights=asked.weights)
    return None


def open_for_all(open_tasks: Callable[[], Tasks], ranks: Ranks) -> Tasks | None:
    """Of the first rank, which alone has them; where it fails, all ranks do."""
    from lmscale.ranks.collectives import failing_together

    with failing_together():
        return open_tasks() if ranks.is_first else None


def load_asked(
    asked: ModelAsked, found: FoundRun | None, device: torch.device, ranks: Ranks
) -> LoadedRun:
    """The same weights on every rank, which share the verification of a checkpoint."""
    from lmscale.evaluation.found import find_run
    from lmscale.ranks.collectives import failing_together

    if asked.hf is None and found is None:
        found = find_run(asked.run, step=asked.step, weights=asked.weights, ranks=ranks)
    with shown(ranks, "loading the model"), failing_together():
        if found is not None:
            from lmscale.evaluation.run import load_found

            return load_found(found, device=device)
        from lmscale.exchange.load_hf import load_hf

        assert asked.hf is not None
        return load_hf(asked.run, asked.hf, device=device)


def shown(
    ranks: Ranks, description: str, total: float | None = None, unit: str = ""
) -> AbstractContextManager[Callable[[float], None]]:
    """The progress of all ranks, which the first one shows."""
    if ranks.is_first:
        return progress(description, total, unit)
    return nullcontext(lambda amount: None)
