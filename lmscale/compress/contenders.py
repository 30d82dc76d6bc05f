"""Runs → the models that are measured, and the sets that they are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import torch

from lmscale.compress.measure import Contender
from lmscale.evaluation.found import FoundRun
from lmscale.evaluation.held_out import open_evaluation_sets
from lmscale.evaluation.run import DTYPES, load_found
from lmscale.stream.dataset import Dataset


def load_contender(found: FoundRun, *, device: torch.device, name: str = "") -> Contender:
    """A run's model, in the precision that it is evaluated in."""
    loaded = load_found(found, device=device)
    parameters = [*loaded.model.parameters()]
    return Contender(
        name=name or found.config.run.name,
        config=loaded.config,
        tokenizer=loaded.tokenizer,
        model=loaded.model,
        dtype=next(name for name, dtype in DTYPES.items() if dtype == parameters[0].dtype),
        bytes=sum(each.numel() * each.element_size() for each in parameters),
    )


@contextmanager
def opened_sets(found: FoundRun, names: Sequence[str] | None) -> Iterator[dict[str, Dataset]]:
    """Held-out sets of a run, those of ``names`` or all."""
    with ExitStack() as stack:
        sets = open_evaluation_sets(found.config, found.tokenizer.fingerprint, names)
        for dataset in sets.values():
            stack.enter_context(closing(dataset))
        yield sets
