"""The digests of a run's steps, as ranks would compute them."""

from __future__ import annotations

from lmscale.config.batch import BatchPlan
from lmscale.stream.batches import Preparation, add_digests
from lmscale.stream.ledger import LedgerRow
from lmscale.stream.loader import open_loader
from lmscale.stream.stream import Stream


def digest_steps(
    stream: Stream,
    plan: BatchPlan,
    *,
    preparation: Preparation,
    first_step: int,
    num_steps: int,
    workers: int,
    prefetch_steps: int = 2,
) -> list[LedgerRow]:
    """One ledger row per step, summed over the plan's ranks, which are read one after another."""
    digests = [0] * num_steps
    targets = [0] * num_steps
    first_n = first_step * plan.global_windows
    for rank in range(plan.data_ranks):
        with open_loader(
            stream,
            plan,
            rank,
            preparation=preparation,
            first_n=first_n,
            num_steps=num_steps,
            workers=workers,
            prefetch_steps=prefetch_steps,
        ) as loader:
            for step, batch in enumerate(loader):
                digests[step] = add_digests((digests[step], batch.digest))
                targets[step] += batch.targets
    return [
        LedgerRow(
            step=first_step + step,
            first_n=first_n + step * plan.global_windows,
            samples=plan.global_windows,
            tokens=targets[step],
            digest=digests[step],
        )
        for step in range(num_steps)
    ]
