"""How the ranks of a run are laid out: one axis for each way in which their work is divided.

        all ranks = data × sequence × tensor × pipeline
                    └── replicas ──┘
                    └── experts are dealt over some of these

Every rank of one data rank reads the same windows; every replica holds the same weights, dealt out
by ZeRO. Today all ranks are on the data axis and every other axis has size 1. Code that means "who
reads what" says ``mesh.data``, code that means "who holds which part of the parameters" says
``mesh.replicas``, and only what means processes (logs, votes, figures per device) says ``Ranks``.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmscale.ranks.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Axis:
    """This rank's place along one axis."""

    rank: int = 0
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """This rank's place along every axis. The default is a run of one rank."""

    data: Axis = Axis()  # which windows of a step this rank reads
    tensor: Axis = Axis()  # which rows or columns of every matrix it multiplies with
    pipeline: Axis = Axis()  # which layers it has
    sequence: Axis = Axis()  # which columns of its windows it computes
    expert: Axis = Axis()  # which experts it has; dealt over replicas, so no factor of ``size``

    @property
    def replicas(self) -> Axis:
        """The ranks that hold the same layers and columns, over which ZeRO deals them."""
        return Axis(
            rank=self.data.rank * self.sequence.size + self.sequence.rank,
            size=self.data.size * self.sequence.size,
        )

    @property
    def size(self) -> int:
        return self.replicas.size * self.tensor.size * self.pipeline.size


def plan_mesh(ranks: Ranks) -> Mesh:
    """The layout of a run: all of its ranks on the data axis."""
    return Mesh(data=Axis(rank=ranks.rank, size=ranks.world_size))
