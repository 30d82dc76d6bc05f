"""Steps of random tokens, for measurements that should depend on nothing but sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from lmscale.config import BatchPlan, RunConfig
from lmscale.objective.objective import build_preparation
from lmscale.stream.batches import Batch, Rows, StepBatch

MEAN_DOCUMENT_TOKENS = 700
POOL_STEPS = 4  # steps made ahead and used in turn, so that no random number is drawn while timed


def random_steps(
    config: RunConfig, plan: BatchPlan, *, seed: int = 0, pool_steps: int = POOL_STEPS
) -> Iterator[StepBatch]:
    """Endless steps of random documents of exponential length, packed into full windows."""
    generator = np.random.default_rng(seed)
    return itertools.cycle([_random_step(config, plan, generator) for _ in range(pool_steps)])


def _random_step(config: RunConfig, plan: BatchPlan, generator: np.random.Generator) -> StepBatch:
    micro_batches = tuple(_random_micro(config, plan, generator) for _ in range(plan.accumulation))
    return StepBatch(first_n=0, samples=plan.global_windows, micro_batches=micro_batches)


def _random_micro(config: RunConfig, plan: BatchPlan, generator: np.random.Generator) -> Batch:
    rows, row_tokens = plan.micro_windows, config.window.tokens
    begins = generator.random((rows, row_tokens)) < 1 / MEAN_DOCUMENT_TOKENS
    begins[:, 0] = True
    dtype = np.uint16 if config.vocab_size <= 2**16 else np.uint32
    prepared = build_preparation(config).prepare(
        Rows(
            numbers=np.arange(rows),
            tokens=generator.integers(0, config.vocab_size, (rows, row_tokens)).astype(dtype),
            lengths=np.full(rows, row_tokens, dtype=np.int32),
            starts=np.flatnonzero(begins).astype(np.int32),
            digests=np.zeros(rows, dtype=np.uint64),
        )
    )
    return Batch(arrays=prepared.arrays, first_n=0, digest=0, targets=prepared.targets)
