"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626): the smallest weights become 0.

``layer``: that share of every matrix. ``all``: of all of them together, so that matrices of small
weights lose more. Which ones are the smallest is exact, and found in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lmscale.compress.made_run import (
    MadeRun,
    Read,
    change_config,
    merged_changes,
    open_merged,
    plain_shapes,
    plan_config,
    plan_place,
    render_next,
    write_made_run,
)
from lmscale.config import RunConfig
from lmscale.errors import ConfigError
from lmscale.evaluation.found import FoundRun
from lmscale.model.family import build_model_on
from lmscale.model.initialize import declared_parameters

By = Literal["layer", "all"]
RETRAIN_FILE = "retrain.yaml"
_HALF = 16  # of the bits of fp32, by which magnitudes are counted


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What is pruned, and to where."""

    run: MadeRun
    retrain: RunConfig  # of a run that goes on from it and keeps the zeros
    share: float
    by: By
    matrices: Mapping[str, int]  # name → its weights, of all that are pruned

    @property
    def num_zeros(self) -> int:
        """That the matrices have at least: exactly so many, but for zeros that were there."""
        if self.by == "all":
            return round(self.share * sum(self.matrices.values()))
        return sum(round(self.share * count) for count in self.matrices.values())


def plan_prune(
    found: FoundRun, name: str, *, share: float, by: By = "layer", embeddings: bool = False
) -> Pruning:
    """The pruning of a checkpoint's matrices; with ``embeddings`` also of embeddings and the head.

    Norms and biases are never pruned. Raises ``ConfigError`` and ``CheckpointError``.
    """
    if not 0 < share < 1:
        raise ConfigError(f"--share {share:g}: give a part of the weights, above 0 and below 1.")
    out = plan_place(name, found.folder)
    config = plan_config(found, out, {})
    shapes = plain_shapes(found)
    meta = build_model_on(
        config.model, config.sizes, device=torch.device("meta"), dtype=torch.float32
    )
    kinds = {"linear", "embedding", "head"} if embeddings else {"linear"}
    declared = declared_parameters(meta)
    matrices = {n: p.numel() for n, p in meta.named_parameters() if declared[n].kind in kinds}
    of = "of each" if by == "layer" else "of all weights"
    how = f"pruned: {share:.1%} {of} of {len(matrices)} matrices"
    next_name = f"{out.name}-retrained"
    retrain = change_config(
        found.config,
        {
            "run.name": next_name,
            "run.folder": str(out.parent / next_name),
            "run.init_from": str(out),
            "run.init_optimizer": False,
            "engine.keep_zeros": True,
            "checkpoint.folder": "",
            **merged_changes(found.config),
        },
        name=f"{found.folder} as {next_name}",
    )
    run = MadeRun(found=found, config=config, shapes=shapes, how=how)
    return Pruning(run=run, retrain=retrain, share=share, by=by, matrices=matrices)


def prune(plan: Pruning, advance: Callable[[float], None] = lambda size: None) -> Path:
    """Write the new run's folder; its path. ``advance`` hears of bytes that are written."""
    with open_merged(plan.run.found) as read:
        value = _prune_all(plan, read) if plan.by == "all" else _prune_each(plan, read)
        out = plan.run.config.folder
        said = (
            f"Retrains the run {plan.retrain.run.name}: {out} is where it begins, and its zeros\n"
            "stay. Steps and learning rate are those of the run before: yours to change."
        )
        files = {RETRAIN_FILE: render_next(plan.retrain, said)}
        write_made_run(plan.run, value, beside=files, advance=advance)
    return out


def _prune_each(plan: Pruning, read: Read) -> Read:
    def value(name: str) -> Tensor:
        weight = read(name)
        if name not in plan.matrices:
            return weight
        count = round(plan.share * weight.numel())
        border, ties = find_border(lambda: iter([weight]), count)
        return zero_smallest(weight, border, ties)[0]

    return value


def _prune_all(plan: Pruning, read: Read) -> Read:
    border, left = find_border(lambda: map(read, plan.matrices), plan.num_zeros)

    def value(name: str) -> Tensor:
        nonlocal left
        weight = read(name)
        if name in plan.matrices:
            weight, left = zero_smallest(weight, border, left)
        return weight

    return value


def find_border(tensors: Callable[[], Iterable[Tensor]], count: int) -> tuple[int, int]:
    """The magnitude of the ``count``-th smallest of the weights in fp32 ``tensors``, which are read
    twice, as the bits of a number; and how many of just this magnitude are among the ``count``.

    By counts of their upper and then of their lower 16 bits, whose order is that of the magnitudes.
    """
    if count == 0:
        return 0, 0
    upper, below = _find_bucket((bits >> _HALF for bits in _magnitudes(tensors())), count)
    mask = (1 << _HALF) - 1
    inside = (bits[bits >> _HALF == upper] & mask for bits in _magnitudes(tensors()))
    lower, before = _find_bucket(inside, count - below)
    return (upper << _HALF) | lower, count - below - before


def _magnitudes(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    return (tensor.abs().contiguous().view(torch.int32).view(-1) for tensor in tensors)


def _find_bucket(numbers: Iterable[Tensor], count: int) -> tuple[int, int]:
    """The number of 16 bits that the ``count``-th smallest is, and how many are smaller."""
    counts = torch.zeros(1 << _HALF, dtype=torch.int64)
    for each in numbers:
        counts += torch.bincount(each, minlength=1 << _HALF)
    sums = counts.cumsum(0)
    bucket = int(torch.searchsorted(sums, count))
    return bucket, int(sums[bucket] - counts[bucket])


def zero_smallest(weight: Tensor, border: int, ties: int) -> tuple[Tensor, int]:
    """The weight, fp32, with 0 for magnitudes below ``border``, and for the first ``ties`` of just
    this one; and how many ties are left for the next.
    """
    flat = weight.contiguous().view(-1)
    bits = flat.abs().view(torch.int32)
    at = (bits == border).nonzero().view(-1)[:ties]
    pruned = torch.where(bits < border, torch.zeros_like(flat), flat)
    pruned[at] = 0.0
    return pruned.view(weight.shape), ties - len(at)
