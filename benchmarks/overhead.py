"""What a training step costs the host beside the arithmetic, and what that grows with.

    python benchmarks/overhead.py [--zero-stage 1] [--precision fp32] [--axes layers shards …]

A model of width 8 has next to no arithmetic. Each axis varies one number; the table holds CPU
milliseconds of the process a step, which other work on the machine moves little, beside those of a
bare torch loop where there is a model, and the least-squares slope of each. ``sources``, ``shards``
and ``position`` are of the loader alone, whose cost must not grow with the corpus.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from host_costs import counting
from random_shards import EOS, write_dataset
from step import measure
from synthetic import build_config, random_steps
from torch import multiprocessing
from training_loops import BareLoop, LmscaleLoop

from launcher.rendezvous import find_free_port
from lmscale.config.data import StreamConfig, plan_batches
from lmscale.objective.causal import CausalPreparation
from lmscale.ranks.mesh import Axis, Mesh
from lmscale.ranks.ranks import Ranks, open_process_group
from lmscale.stream.loader import open_loader
from lmscale.stream.stream import open_stream
from lmscale.stream.worker import LoaderJob

CPU = torch.device("cpu")
MODEL_AXES = {  # axis → its values, and the setting that has them
    "layers": ((2, 4, 8, 16), "model.layers={0}"),
    "parameters": ((512, 4096, 32768), "model.vocab_size={0}"),  # × 2 × 8, and the layers'
    "micro-batches": ((1, 2, 4, 8), "batch.global_windows={0}"),
}
LOADER_AXES = {"sources": (1, 4, 16), "shards": (4, 40, 400), "position": (0, 10**6, 10**9)}
RANKS = (1, 2)
AXES = (*MODEL_AXES, "ranks", *LOADER_AXES)
SHARD_DOCUMENTS, DOCUMENT_TOKENS, WINDOWS = 20, 300, 64


class Point(NamedTuple):
    """Of one value of an axis: CPU milliseconds a step, and operators a step where counted."""

    value: float
    lmscale: float
    bare: float | None = None
    operators: tuple[int, int] | None = None  # lmscale's and the bare loop's


def slope(points: Sequence[Point], of: Callable[[Point], float | None]) -> float:
    """Milliseconds per unit of the axis, by least squares."""
    x = np.array([point.value for point in points], dtype=float)
    return float(np.polyfit(x, np.array([of(point) for point in points], dtype=float), 1)[0])


def measure_model(settings: Sequence[str], *, rounds: int, steps: int, value: float) -> Point:
    config = build_config("narrow", settings)
    plan = config.batch.plan(1)
    loops = {
        "lmscale": LmscaleLoop(config, plan, CPU, random_steps(config, plan)),
        BareLoop.name: BareLoop(config, plan, CPU, random_steps(config, plan)),
    }
    timings = measure(loops, rounds=rounds, steps=steps, clock=time.process_time)
    counted = []
    for loop in loops.values():
        with counting() as costs:
            loop.run(1)
        counted.append(costs.operators)
        loop.close()
    ours, theirs = (1e3 * timing.step_seconds for timing in timings.values())
    return Point(value, ours, theirs, (counted[0], counted[1]))


def measure_ranks(settings: Sequence[str], count: int, *, rounds: int, steps: int) -> Point:
    """Of the first of so many ranks, each a process of its own, over gloo."""
    port = find_free_port()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "milliseconds"
        work = (count, port, [*settings], rounds, steps, str(out))
        multiprocessing.start_processes(_on_a_rank, work, nprocs=count, start_method="spawn")
        return Point(count, float(out.read_text()))


def _on_a_rank(
    rank: int, count: int, port: int, settings: list[str], rounds: int, steps: int, out: str
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = Ranks(rank=rank, world_size=count, local_rank=rank, local_world_size=count)
    config = build_config("narrow", [*settings, f"batch.global_windows={2 * count}"])
    plan = config.batch.plan(count)
    with open_process_group(ranks, CPU):
        mesh = Mesh(data=Axis(rank=rank, size=count))
        loop = LmscaleLoop(config, plan, CPU, random_steps(config, plan), mesh=mesh)
        timing = measure({"": loop}, rounds=rounds, steps=steps, clock=time.process_time)[""]
    if rank == 0:
        Path(out).write_text(str(1e3 * timing.step_seconds))


def measure_loader(axis: str, value: int, folder: Path, *, rounds: int, steps: int) -> Point:
    num_shards = value if axis == "shards" else LOADER_AXES["shards"][0]
    num_sources = value if axis == "sources" else 1
    names = [f"source{number}" for number in range(num_sources)]
    for name in names:
        if not (folder / f"{num_shards}" / name).exists():
            _write_shards(folder / f"{num_shards}" / name, num_shards)
    config = StreamConfig.model_validate(
        {
            "sources": {name: {"shards": str(folder / f"{num_shards}" / name)} for name in names},
            "sequence_length": 128,
            "cache": {"folder": str(folder / "cache")},
        }
    )
    with open_stream(config, seed=1) as stream:
        job = LoaderJob(
            stream=stream,
            preparation=CausalPreparation(mask_documents=config.mask_documents),
            plan=plan_batches(global_windows=WINDOWS, micro_windows=WINDOWS, data_ranks=1),
            data_rank=0,
            first_n=value if axis == "position" else 0,
            num_steps=10**6,
        )
        with open_loader(job, workers=0) as loader:
            batches = iter(loader)
            seconds = [_time_batches(batches, steps) for _ in range(rounds + 1)]
    return Point(value, 1e3 * statistics.median(seconds[1:]))


def _time_batches(batches: Iterator[object], steps: int) -> float:
    began = time.process_time()
    for _ in range(steps):
        next(batches)
    return (time.process_time() - began) / steps


def _write_shards(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    ids = random.integers(4, 512, (count, SHARD_DOCUMENTS, DOCUMENT_TOKENS)).astype(np.uint16)
    ids[:, :, -1] = EOS
    write_dataset(folder, ids, vocab_size=512, block_tokens=2**12)


def render_axis(axis: str, points: Sequence[Point]) -> str:
    has_bare = points[0].bare is not None
    more = f"{'bare ms':>10}{'operators':>12}{'bare':>7}" if has_bare else ""
    lines = [f"{axis:>14}{'lmscale ms':>12}{more}"]
    for point in points:
        more = f"{point.bare:10.2f}" if point.bare is not None else ""
        more += "".join(f"{n:{w}}" for n, w in zip(point.operators or (), (12, 7), strict=False))
        lines.append(f"{point.value:14,.0f}{point.lmscale:12.2f}{more}")
    ours = slope(points, lambda point: point.lmscale)
    last = f"{'slope':>14}{1e3 * ours:12.4g} µs"
    if has_bare:
        last += f"{1e3 * slope(points, lambda point: point.bare):7.4g} µs"
    return "\n".join([*lines, last])


def run_axis(axis: str, settings: Sequence[str], folder: Path, *, rounds: int, steps: int) -> str:
    limits = {"rounds": rounds, "steps": steps}
    if axis in MODEL_AXES:
        values, setting = MODEL_AXES[axis]
        points = [
            measure_model([*settings, setting.format(value)], value=value, **limits)
            for value in values
        ]
    elif axis == "ranks":
        points = [measure_ranks(settings, count, **limits) for count in RANKS]
    else:
        points = [measure_loader(axis, value, folder, **limits) for value in LOADER_AXES[axis]]
    return render_axis(axis, points)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--zero-stage", default="1")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="steps in a round")
    given = parser.parse_args(arguments)
    settings = [f"engine.zero_stage={given.zero_stage}", f"engine.precision={given.precision}"]
    torch.set_num_threads(1)
    print(f"CPU milliseconds a step, {given.precision}, ZeRO {given.zero_stage}, 1 thread")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(open_process_group(Ranks(), CPU))  # one: DeepSpeed remembers it
        for axis in given.axes:
            table = run_axis(axis, settings, folder, rounds=given.rounds, steps=given.steps)
            print(f"\n{table}", flush=True)


if __name__ == "__main__":
    main()
