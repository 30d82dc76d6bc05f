"""Muon over ZeRO: matrices are put together on one rank, orthogonalised there, and dealt back.

DeepSpeed 0.19.8's own Muon is not used: at stages 1 to 3 it orthogonalises before the gradient is
clipped, so that the norm which is clipped, and reported, is that of the update; its momentum has
the gradient's dtype, bf16 included; and it has been AdamW (#8438) or SGD (#8441) without a word.
This one is an optimizer of torch's kind that runs where DeepSpeed calls it, after clipping, on fp32
masters, at every stage alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

STEPS = 5  # of Newton and Schulz
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024
_SMALLEST_NORM = 1e-7


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix in a flat master, of which this rank may hold a piece."""

    shape: tuple[int, int]
    start: int  # of this rank's piece in the master
    elements_of: tuple[int, ...]  # per rank; its pieces follow each other in the ranks' order

    @property
    def holder(self) -> int | None:
        """The rank that holds the whole matrix, or None."""
        whole = math.prod(self.shape)
        return next((rank for rank, size in enumerate(self.elements_of) if size == whole), None)


def plan_matrices(
    parts: Sequence[int], columns: int, *, held: Sequence[tuple[int, int]], rank: int, start: int
) -> list[Matrix]:
    """The matrices, of so many rows each, that are stored as one parameter, in their order.

    Each is orthogonalised by itself: together, the one with the largest gradient would set the size
    of all. ``held``: which elements of the flattened parameter each rank has, from and to; those of
    ``rank`` begin at ``start`` of its master.
    """
    matrices: list[Matrix] = []
    first = 0
    for rows in parts:
        last = first + rows * columns
        within = [(min(max(first, low), high), max(min(last, high), low)) for low, high in held]
        matrices.append(
            Matrix(
                shape=(rows, columns),
                start=start + within[rank][0] - held[rank][0],
                elements_of=tuple(max(0, end - begin) for begin, end in within),
            )
        )
        first = last
    return matrices


@torch.no_grad()
def orthogonalize(matrix: Tensor) -> Tensor:
    """An almost orthogonal matrix near ``matrix`` in direction, fp32 [rows, columns].

    Scaled by 0.2 · sqrt(the longer side) to the size of AdamW's updates (Liu et al. 2025), so that
    AdamW and Muon take the same learning rate. Computed in bf16 on a GPU, as is usual, and in fp32
    on a CPU, where fp32 is faster.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.to(torch.bfloat16 if matrix.device.type == "cuda" else torch.float32)
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.mT
    x = x / x.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    if is_tall:
        x = x.mT
    return x.to(torch.float32) * (0.2 * math.sqrt(max(matrix.shape)))


class Muon(torch.optim.Optimizer):
    """Muon for the groups of method ``muon``, AdamW for the others.

    Muon: momentum of the gradient by Nesterov, orthogonalised; weight decay as AdamW's. ``bind``
    says which matrices the masters hold; before it, and so in the step that DeepSpeed takes while
    it is built, their groups stay as they are.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum})
        others = [group for group in self.param_groups if group["method"] != "muon"]
        # The groups are the same dicts as here, which DeepSpeed will rewrite.
        self._adamw = (
            torch.optim.AdamW(others, lr=0.0, betas=betas, eps=eps, fused=True) if others else None
        )
        self._matrices: Mapping[Tensor, Sequence[Matrix]] | None = None
        self._device = torch.device("cpu")

    def bind(self, matrices: Mapping[Tensor, Sequence[Matrix]], device: torch.device) -> None:
        """``matrices``: master → its matrices, in the same order on all ranks.

        ``device`` is where matrices are exchanged and orthogonalised.
        """
        self._matrices = matrices
        self._device = device

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the masters, unless a gradient was found that is not finite (``found_inf``, as of
        torch's fused optimizers). A collective: all ranks, with the same masters in the same order.
        """
        if getattr(self, "found_inf", False):
            return
        groups = [group for group in self.param_groups if group["params"]]
        for group in groups:
            if group["method"] == "muon" and self._matrices is not None:
                for master in group["params"]:
                    if master.grad is not None:
                        self._update(master, group, self._matrices[master])
        if self._adamw is not None:
            self._adamw.param_groups = [group for group in groups if group["method"] != "muon"]
            self._adamw.state = self.state  # DeepSpeed may replace either
            self._adamw.step()

    def _update(self, master: Tensor, group: dict[str, Any], matrices: Sequence[Matrix]) -> None:
        update, momentum = master.grad, self.state[master]["momentum_buffer"]
        assert update is not None
        momentum.lerp_(update, 1 - group["momentum"])
        # In the gradient's memory, which is not read again.
        update.lerp_(momentum, group["momentum"])
        flat = update.view(-1)
        rank = dist.get_rank()
        for matrix in matrices:
            if matrix.holder == rank or len(matrix.elements_of) == 1:
                part = flat.narrow(0, matrix.start, math.prod(matrix.shape))
                whole = part.view(matrix.shape).to(self._device)
                part.copy_(orthogonalize(whole).reshape(-1))
        self._exchange(flat, [matrix for matrix in matrices if matrix.holder is None])
        master.mul_(1 - group["lr"] * group["weight_decay"])
        master.add_(update, alpha=-group["lr"])

    def _exchange(self, flat: Tensor, matrices: Sequence[Matrix]) -> None:
        """Orthogonalise the matrices whose parts are with several ranks, as many at once as there
        are ranks: each gets the parts of one, and sends the result's parts back.
        """
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        for first in range(0, len(matrices), num_ranks):
            batch = matrices[first : first + num_ranks]
            parts = [flat.narrow(0, m.start, m.elements_of[rank]) for m in batch]
            idle = [0] * (num_ranks - len(batch))
            sent = [len(part) for part in parts] + idle
            mine = batch[rank] if rank < len(batch) else None
            received = list(mine.elements_of) if mine else [0] * num_ranks
            whole = flat.new_empty(sum(received), device=self._device)
            packed = torch.cat(parts).to(self._device)
            dist.all_to_all_single(whole, packed, received, sent)
            if mine:
                whole = orthogonalize(whole.view(mine.shape)).reshape(-1)
            dist.all_to_all_single(packed, whole, sent, received)
            for part, result in zip(parts, packed.split(sent[: len(batch)]), strict=True):
                part.copy_(result)
