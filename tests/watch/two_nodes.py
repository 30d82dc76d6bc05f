"""Starts three real ranks of a run as if on two nodes, the third one alone on the second.

    python tests/watch/two_nodes.py CONFIG

The launcher's own supervision, with the environment that Slurm's tasks would have.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.local import RankPlan, run_ranks, train_argv
from launcher.rendezvous import environment_for, find_free_port
from lmscale.config import load_config
from lmscale.ranks.ranks import LOOPBACK

NODES = ((0, 2), (0, 2), (1, 1))  # rank → (its node, the ranks of that node)


def plan(config: str, rank: int, port: int, logs: Path) -> RankPlan:
    node, ranks_of_node = NODES[rank]
    local_rank = rank - min(r for r, (other, _) in enumerate(NODES) if other == node)
    environment = environment_for(
        rank,
        world_size=len(NODES),
        local_rank=local_rank,
        local_world_size=ranks_of_node,
        node_rank=node,
        master=(LOOPBACK, port),
    )
    environment = {**environment, "GLOO_SOCKET_IFNAME": "lo"}
    output = logs / f"rank-{rank:05d}.out"
    return RankPlan(rank=rank, argv=train_argv(config, ()), environment=environment, output=output)


def main(config: str) -> int:
    logs = load_config(config).folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    port = find_free_port()
    outcome = run_ranks([plan(config, rank, port, logs) for rank in range(len(NODES))])
    print(*outcome.problems, sep="\n")
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
