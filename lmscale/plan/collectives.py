"""Seconds of collectives over a machine's ranks, as NCCL's own model of rings and trees has them.

Bytes are those of the whole tensor. A ring sends (n - 1)/n of it past every rank for a gather or a
reduce-scatter, and twice that for an all-reduce (Patarasuk and Yuan 2009); a double binary tree
sends all of it twice, in fewer hops (Sanders et al. 2009). NCCL takes whichever its model says is
faster (src/graph/tuning.cc), and so does this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from lmscale.plan.calibration import CollectiveTime
from lmscale.plan.devices import COLLECTIVE_SECONDS, Machine

Collective = Literal["all_reduce", "all_gather", "reduce_scatter"]
TREE_SHARE = 0.92  # of a ring's bandwidth: tuning.cc, "busBw * .92"


def collective_seconds(kind: Collective, nbytes: float, machine: Machine) -> float:
    """Seconds until every rank has its result of a tensor of so many bytes; 0 of one rank."""
    if machine.ranks == 1 or nbytes <= 0:
        return 0.0
    measured = machine.device.measured
    if measured is not None and measured.ranks == machine.ranks:
        points = [point for point in measured.collectives if point.kind == kind]
        if points:
            return _between(points, nbytes)
    ring = _ring_seconds(kind, nbytes, machine)
    return min(ring, _tree_seconds(nbytes, machine)) if kind == "all_reduce" else ring


def bus_bytes_per_second(machine: Machine) -> float:
    """What passes a rank of a ring over all nodes: NCCL opens as many rings as a node has network
    cards, each of which carries its part of the tensor, so a node's whole network counts.
    """
    if machine.nodes == 1:
        return machine.intra_bytes_per_second
    node = machine.inter_bytes_per_second * machine.devices_per_node
    return min(node, machine.intra_bytes_per_second) if machine.devices_per_node > 1 else node


def _ring_seconds(kind: Collective, nbytes: float, machine: Machine) -> float:
    ranks, nodes = machine.ranks, machine.nodes
    rounds = 2 if kind == "all_reduce" else 1
    hops = rounds * (ranks - 1)
    between = 0 if nodes == 1 else rounds * nodes if rounds == 2 else nodes - 1
    latency = (hops - between) * machine.intra_latency_seconds
    latency += between * machine.inter_latency_seconds
    moved = rounds * (ranks - 1) / ranks * nbytes
    return COLLECTIVE_SECONDS + latency + moved / bus_bytes_per_second(machine)


def _tree_seconds(nbytes: float, machine: Machine) -> float:
    """Of an all-reduce: a chain within every node, a double binary tree over the nodes."""
    within = (machine.devices_per_node - 1) * machine.intra_latency_seconds
    between = math.log2(machine.nodes) * machine.inter_latency_seconds
    bandwidth = TREE_SHARE * bus_bytes_per_second(machine)
    return COLLECTIVE_SECONDS + 2 * (within + between) + 2 * nbytes / bandwidth


def _between(points: Sequence[CollectiveTime], nbytes: float) -> float:
    """Between two measured sizes by a straight line; beyond the largest by its bandwidth."""
    rows = sorted((point.sent_bytes, point.seconds) for point in points)
    if nbytes <= rows[0][0]:
        return rows[0][1]
    for (low, fast), (high, slow) in zip(rows, rows[1:], strict=False):
        if nbytes <= high:
            return fast + (nbytes - low) / (high - low) * (slow - fast)
    return rows[-1][1] * nbytes / rows[-1][0]
