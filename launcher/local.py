"""The ranks of a run on this machine: what to start, and what their ends mean together."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.rendezvous import environment_for, find_free_port, unset_defaults
from launcher.supervise import Outcome, RankPlan, Supervisor
from lmscale.config import load_config
from lmscale.errors import ClusterError, ConfigError
from lmscale.ranks.device import num_cores
from lmscale.ranks.ranks import LOOPBACK
from lmscale.runs.continuation import check_folder


def plan_ranks(
    argv: Sequence[str],
    *,
    num_ranks: int,
    logs: Path,
    port: int,
    cores: int,
    environ: Mapping[str, str],
) -> tuple[RankPlan, ...]:
    """What to start for ``num_ranks`` ranks that all run ``argv``; rank 0 keeps the terminal."""
    defaults = unset_defaults(max(1, cores // num_ranks), environ)
    return tuple(
        RankPlan(
            rank=rank,
            argv=tuple(argv),
            environment=defaults
            | environment_for(
                rank,
                world_size=num_ranks,
                local_rank=rank,
                local_world_size=num_ranks,
                node_rank=0,
                master=(LOOPBACK, port),
            ),
            output=logs / f"rank-{rank:05d}.out" if rank else None,
        )
        for rank in range(num_ranks)
    )


def train_argv(config_path: str | Path, overrides: Sequence[str]) -> tuple[str, ...]:
    settings = [part for override in overrides for part in ("--set", override)]
    return (sys.executable, "-m", "lmscale.cli.main", "train", str(config_path), *settings)


def launch_local(config_path: str | Path, overrides: Sequence[str], *, num_ranks: int) -> Outcome:
    """Train on this machine with ``num_ranks`` ranks, until all have ended.

    The configuration, its division among the ranks and whose folder it names are checked before any
    rank starts or anything is written; problems raise ``ConfigError``.
    """
    if num_ranks < 1:
        raise ConfigError(f"--nproc {num_ranks}: at least one rank is needed.")
    config = load_config(config_path, overrides)
    config.batch.plan(num_ranks)
    check_folder(config.folder, config)
    logs = config.folder / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(
            f"The run's folder {config.folder} cannot be made: {error}. Set run.folder."
        ) from None
    plans = plan_ranks(
        train_argv(config_path, overrides),
        num_ranks=num_ranks,
        logs=logs,
        port=find_free_port(),
        cores=num_cores(),
        environ=os.environ,
    )
    return run_ranks(plans)


def run_ranks(plans: Sequence[RankPlan]) -> Outcome:
    """Start the planned processes, forward signals to them, and wait for their common end."""
    with Supervisor() as supervisor:
        for plan in plans:
            supervisor.start(plan)
        return supervisor.wait()
