"""Small training steps and products, timed: what `lmscale plan calibrate` measures a device by."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Literal

import torch

from lmscale.config import RunConfig
from lmscale.evaluation.run import DTYPES
from lmscale.plan.calibration import CollectiveTime, ProductTime
from lmscale.plan.counts import PHASES
from lmscale.ranks.mesh import plan_mesh
from lmscale.ranks.ranks import Ranks
from lmscale.train.initial import build_run_engine
from lmscale.train.loop import train_steps
from lmscale.train.random_batches import random_steps
from lmscale.watch import heartbeat

Clock = Literal["wall", "process"]
CLOCKS: dict[Clock, Callable[[], float]] = {
    "wall": time.perf_counter,
    "process": time.process_time,
}
WARM_UP = 2  # steps, in which allocators fill and kernels are chosen
PRODUCT_SIZES = (64, 256, 1024, 4096)
MOST_FLOPS = 2.2e9  # of one product: a tenth of a second of a slow core
REPETITIONS = 5
COLLECTIVE_BYTES = (2**12, 2**16, 2**20, 2**24)


class PhaseTimer:
    """Seconds of each phase of the steps since it began, by a clock of its own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._name, self._since = clock, "", clock()
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, name: str) -> None:
        now = self._clock()
        self.seconds[self._name] += now - self._since
        self._name, self._since = name, now


class StepLoop:
    """A run's own steps on random tokens."""

    def __init__(
        self, config: RunConfig, ranks: Ranks, device: torch.device, clock: Clock = "wall"
    ) -> None:
        mesh = plan_mesh(ranks)
        plan = config.batch.plan(ranks.world_size)
        self._clock = CLOCKS[clock]
        self._engine = build_run_engine(config, plan, mesh, device, fill=True)
        self._reports = train_steps(self._engine, random_steps(config, plan), config)
        for _ in range(WARM_UP):
            next(self._reports)

    def time_step(self) -> dict[str, float]:
        """Seconds of one step, by phase; ``step`` is all that follows the last backward pass."""
        timer = PhaseTimer(self._clock)
        with heartbeat.listening(timer):
            next(self._reports)
            timer("")
        seconds = {name: timer.seconds.get(name, 0.0) for name in ("forward", "backward")}
        rest = sum(each for name, each in timer.seconds.items() if name not in seconds)
        return seconds | {"step": rest}

    def close(self) -> None:
        self._engine.close()
        del self._engine, self._reports
        gc.collect()


@contextmanager
def open_step_loop(
    config: RunConfig, ranks: Ranks, device: torch.device, clock: Clock
) -> Iterator[StepLoop]:
    loop = StepLoop(config, ranks, device, clock)
    try:
        yield loop
    finally:
        loop.close()


def time_steps(loop: StepLoop, steps: int) -> dict[str, float]:
    """Phase → the least of so many steps: what else runs on a machine only ever adds to it."""
    rows = [loop.time_step() for _ in range(steps)]
    return {phase: min(row[phase] for row in rows) for phase in PHASES}


def time_products(
    precision: str, device: torch.device, clock: Clock, sizes: Sequence[int] = PRODUCT_SIZES
) -> tuple[ProductTime, ...]:
    """A linear layer's product and both gradients, over a grid of sizes."""
    rows = []
    for m in sizes:
        for n in sizes:
            for k in sizes:
                if 2.0 * m * n * k <= MOST_FLOPS:
                    rows.append(_time_product(m, n, k, precision, device, CLOCKS[clock]))
    return tuple(rows)


def _time_product(
    m: int, n: int, k: int, precision: str, device: torch.device, clock: Callable[[], float]
) -> ProductTime:
    dtype = DTYPES[precision]
    x, weight, gradient = (
        torch.randn(rows, columns, device=device, dtype=dtype)
        for rows, columns in ((m, k), (n, k), (m, n))
    )
    forward, backward = [], []
    for number in range(REPETITIONS + 1):
        began = clock()
        torch.nn.functional.linear(x, weight)
        _finish(device)
        between = clock()
        torch.mm(gradient, weight)
        torch.mm(gradient.T, x)
        _finish(device)
        if number:  # the first one chooses its kernel
            forward.append(between - began)
            backward.append(clock() - between)
    return ProductTime(
        precision=precision,  # pyright: ignore[reportArgumentType]
        m=m,
        n=n,
        k=k,
        forward_seconds=max(min(forward), 1e-9),
        backward_seconds=max(min(backward), 1e-9),
    )


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_collectives(device: torch.device) -> tuple[CollectiveTime, ...]:
    """By the wall's clock, as all ranks wait in them. Nothing of one rank."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ()
    rows = []
    for nbytes in COLLECTIVE_BYTES:
        tensor = torch.ones(nbytes // 4, device=device)
        seconds = []
        for _ in range(REPETITIONS + 1):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(tensor)
            _finish(device)
            seconds.append(time.perf_counter() - began)
        rows.append(
            CollectiveTime(kind="all_reduce", sent_bytes=nbytes, seconds=median(seconds[1:]))
        )
    return tuple(rows)
