"""Adafactor over ZeRO: a matrix keeps one number a row and a column in place of one an element.

Shazeer and Stern 2018 (arXiv 1804.04235), algorithms 4 and 5, without momentum. The mean square of
an element's gradient is taken as r c / mean(r), of running means of the squares by row, r, and by
column, c, that forget by 1 - t^-0.8. An update is scaled down to a root mean square of 1, and then
by that of the parameter itself: ``lr`` is relative. Matrices that are stored as one are taken each
by itself: together, the one with the largest gradient would set the size of all.

Means over a whole matrix are all that it needs of the other ranks: each sums over the run of
elements that it holds, and two small all-reduces a step give every rank the same r, c and scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lmscale.engine.per_parameter import PIECE, PerParameterOptimizer

FORGETS = -0.8  # the power of the step
SMALLEST_SQUARE = 1e-30  # of the gradient
SMALLEST_SCALE = 1e-3  # of a parameter, which may begin with zeros


@dataclass(frozen=True, kw_only=True)
class FactoredPart:
    """A matrix, and the run of its elements that this rank's master holds; it may be empty."""

    name: str
    rows: int
    columns: int
    offset: int  # of the run in the flattened matrix
    start: int  # of the run in the flattened master
    elements: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.narrow(0, self.start, self.elements)

    @property
    def lines(self) -> slice:
        """The rows that the run touches."""
        return slice(self.offset // self.columns, -(-(self.offset + self.elements) // self.columns))

    def cut_up(self, size: int) -> Iterator[FactoredPart]:
        """The run in pieces of at most ``size`` elements: of a whole one, copies were too large."""
        for past in range(0, self.elements, size):
            yield replace(
                self,
                offset=self.offset + past,
                start=self.start + past,
                elements=min(size, self.elements - past),
            )

    def pad(self, run: Tensor) -> Tensor:
        """The run in the rows that it touches, zeros around it: [rows touched, columns]."""
        lines = self.lines
        whole = run.new_zeros((lines.stop - lines.start) * self.columns)
        whole[self.offset - lines.start * self.columns :][: self.elements] = run
        return whole.view(-1, self.columns)

    def cut(self, lines: Tensor) -> Tensor:
        """What ``pad`` has put around the run taken away again."""
        begin = self.offset - self.lines.start * self.columns
        return lines.reshape(-1)[begin : begin + self.elements]


def plan_factored(
    name: str, shape: Sequence[int], parts: Sequence[int], *, held: tuple[int, int], start: int
) -> list[FactoredPart]:
    """The matrices that are stored as the parameter ``name``, in their order.

    It is taken as a matrix by its last dimension; a vector is one row. ``parts``: the rows of each,
    or elements where it is a vector; empty: it is one. ``held``: which of its flattened elements
    this rank has, from and to; they begin at ``start`` of its master.
    """
    *rows, columns = shape or (1,)
    sizes = parts or (math.prod(rows) if rows else columns,)
    planned: list[FactoredPart] = []
    first, (low, high) = 0, held
    for index, size in enumerate(sizes):
        of_matrix = (size, columns) if rows else (1, size)
        last = first + math.prod(of_matrix)
        begin, end = (min(max(edge, low), high) for edge in (first, last))
        part = FactoredPart(
            name=f"{name}.{index}" if len(sizes) > 1 else name,
            rows=of_matrix[0],
            columns=of_matrix[1],
            offset=begin - first,
            start=start + begin - low,
            elements=end - begin,
        )
        planned.append(part)
        first = last
    return planned


class Adafactor(PerParameterOptimizer):
    """``bind`` says what the masters hold; before it, and so in the step that DeepSpeed takes while
    it is built, they stay as they are. ``factors``: a matrix's r, f32 [rows], and c, [columns], the
    same on all ranks. A step is a collective of all ranks, whose masters are in the same order.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._parts: Mapping[Tensor, Sequence[FactoredPart]] = {}
        self._device = torch.device("cpu")
        self._is_dealt = False

    def bind(
        self,
        parts: Mapping[Tensor, Sequence[FactoredPart]],
        device: torch.device,
        *,
        is_dealt: bool,
    ) -> None:
        """``parts``: master → the matrices of which any rank's holds a run, in the same order on
        all ranks. ``device`` is where ranks exchange; ``is_dealt``: they hold different runs.
        """
        self._parts, self._device, self._is_dealt = parts, device, is_dealt
        self.factors = {
            part.name: (
                torch.zeros(part.rows, device=master.device),
                torch.zeros(part.columns, device=master.device),
            )
            for master, of_master in parts.items()
            for part in of_master
        }

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if parameter not in self._parts:
            return
        master, parts = parameter, self._parts[parameter]
        state = self.state[master]
        state["step"] += 1
        share = float(state["step"]) ** FORGETS  # of this step in the means
        flat, slopes = master.view(-1), gradient.view(-1)
        sums = self._sum([row for part in parts for row in sum_squares(part, slopes, flat)])
        of_parts = zip(sums[::3], sums[1::3], sums[2::3], strict=True)
        scales = []
        for part, (by_row, by_column, of_weights) in zip(parts, of_parts, strict=True):
            r, c = self.factors[part.name]
            r.lerp_(by_row / part.columns + SMALLEST_SQUARE, share)
            c.lerp_(by_column / part.rows + SMALLEST_SQUARE, share)
            size = part.rows * part.columns
            scales.append((of_weights / size).sqrt().clamp(min=SMALLEST_SCALE))
            # The update, in the gradient's memory, which is not read again. The roots are taken
            # apart: where a row and a column have no gradient, their product is no fp32 number.
            row_roots, column_roots = r.rsqrt() * r.mean().sqrt(), c.rsqrt()
            for piece in part.cut_up(PIECE):
                factors = torch.outer(row_roots[piece.lines], column_roots)
                piece.of(slopes).mul_(piece.cut(factors))
        lengths = self._sum([sum_of_squares(part, slopes) for part in parts])
        master.mul_(1 - group["lr"] * group["weight_decay"])
        for part, scale, length in zip(parts, scales, lengths, strict=True):
            root_mean_square = (length / (part.rows * part.columns)).sqrt()
            rate = group["lr"] * scale / root_mean_square.clamp(min=1.0)
            part.of(flat).addcmul_(part.of(slopes), -rate)

    def _sum(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Each vector's sum over the ranks, by one all-reduce of all of them."""
        if not self._is_dealt:
            return [*rows]
        packed = torch.cat([*rows]).to(self._device)
        dist.all_reduce(packed)
        return [*packed.to(rows[0].device).split([len(row) for row in rows])]


def sum_squares(part: FactoredPart, slopes: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """Of the gradient's run by row, f32 [rows], and by column, [columns]; of the weights', [1]."""
    by_row, by_column = slopes.new_zeros(part.rows), slopes.new_zeros(part.columns)
    for piece in part.cut_up(PIECE):
        squares = piece.pad(piece.of(slopes)).square_()
        by_row[piece.lines] += squares.sum(1)
        by_column += squares.sum(0)
    return by_row, by_column, sum_of_squares(part, weights)


def sum_of_squares(part: FactoredPart, flat: Tensor) -> Tensor:
    """Of the run's elements, [1]."""
    total = flat.new_zeros(1)
    for piece in part.cut_up(PIECE):
        total += piece.of(flat).square().sum()
    return total
