"""What a save costs the training, and what a load takes, beside a plain copy and DeepSpeed's own.

    python benchmarks/checkpoint.py                    # 200M parameters on the CPU, one rank
    python benchmarks/checkpoint.py --ranks 2
    python benchmarks/checkpoint.py --gpu              # 1.3B in bf16 on one GPU
    python benchmarks/checkpoint.py --shape tiny       # whether it runs

In every round, on the same weights: a plain copy of as many bytes in host memory, a save beside the
training with steps while it is under way, steps without one, a save that training waits for,
DeepSpeed's ``save_checkpoint``; then both loads, in turns. Ratios are medians of ratios within a
round. ``--gpu`` ends with a resume across ZeRO stages.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from synthetic import SHAPES, build_config, random_steps
from training_loops import synchronize

from launcher.rendezvous import environment_for, find_free_port
from lmscale.checkpoint.find import find_sound
from lmscale.checkpoint.fragments import owned_fragments
from lmscale.checkpoint.load import load_checkpoint
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.snapshot import parts_of
from lmscale.config import RunConfig, plan_batches
from lmscale.engine.step_report import StepReport
from lmscale.history.history import History
from lmscale.ranks.collectives import barrier, gather_json
from lmscale.ranks.device import device_name
from lmscale.ranks.mesh import plan_mesh
from lmscale.ranks.ranks import Ranks, open_process_group, ranks_from_environment
from lmscale.runs.environment import num_cores
from lmscale.runs.lease import NO_LEASE
from lmscale.train.initial import build_run_engine
from lmscale.train.loop import train_steps
from lmscale.train.progress import Progress, ProgressCounter
from lmscale.train.saver import Saver

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from plain_save import save_checkpoint  # noqa: E402

QUIET_STEPS = 3  # of a round, without a save under way
MAX_BUSY_STEPS = 200  # with one
STAGES_CROSSED = ((1, 3), (3, 2), (2, 0), (0, 1))
RATIOS = {  # what is printed: (of, to)
    "stopped by an asynchronous save ÷ by one that is waited for": ("stopped", "synchronous"),
    "stopped by an asynchronous save ÷ plain copy of the bytes": ("stopped", "copy"),
    "step with a save under way ÷ without": ("busy step", "quiet step"),
    "load ÷ DeepSpeed's": ("load", "DeepSpeed's load"),
    "load and all hashes ÷ DeepSpeed's load": ("hashes and load", "DeepSpeed's load"),
    "stopped by an asynchronous save ÷ by DeepSpeed's": ("stopped", "DeepSpeed's save"),
}


@dataclass(kw_only=True)
class Bench:
    """An engine in training, with all that a saver asks of a run."""

    config: RunConfig
    ranks: Ranks
    device: torch.device
    folder: Path
    engine: Any = None
    reports: Iterator[StepReport] = iter(())
    counter: ProgressCounter = field(default_factory=lambda: ProgressCounter(Progress()))
    rounds: list[dict[str, float]] = field(default_factory=list)

    def step(self) -> float:
        synchronize(self.device)
        began = time.perf_counter()
        report = next(self.reports)
        synchronize(self.device)
        self.counter.now = Progress(step=report.step, n=report.step)
        return time.perf_counter() - began

    def open_saver(self) -> Saver:
        run: Any = SimpleNamespace(
            config=self.config,
            folder=self.folder,
            engine=self.engine,
            ranks=self.ranks,
            place=LocalPlace(self.folder / "checkpoints"),
            stream=SimpleNamespace(state_at=lambda n: SimpleNamespace(to_json=dict)),
            identity={},
            lease=NO_LEASE,
            history=History(),
            origin=None,
            branch=None,
            teacher=None,
            class_weights=None,
            passed_over=frozenset(),
            start=Progress(),
        )
        return Saver(run=run, counter=self.counter, ledger=None)


def open_bench(config: RunConfig, device: torch.device, folder: Path, ranks: Ranks) -> Bench:
    """From the initial weights, after one step: the optimizer's states are there."""
    plan = plan_batches(
        global_windows=config.batch.global_windows,
        micro_windows=config.batch.micro_windows,
        data_ranks=ranks.world_size,
    )
    bench = Bench(config=config, ranks=ranks, device=device, folder=folder)
    bench.engine = build_run_engine(config, plan, plan_mesh(ranks), device, fill=True)
    bench.reports = train_steps(
        bench.engine,
        random_steps(config, plan),
        config,
    )
    bench.step()
    return bench


def timed(action: Callable[[], Any]) -> float:
    barrier()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure_round(bench: Bench, saver: Saver, copy: Callable[[], float]) -> dict[str, float]:
    """Seconds of everything that takes part in a ratio."""
    seen = {"copy": copy()}
    bench.step()
    barrier()
    seen["stopped"] = timed(lambda: saver.save(wait=False))
    began = time.perf_counter()
    busy: list[float] = []
    while len(busy) < MAX_BUSY_STEPS:
        busy.append(bench.step())
        # All ranks must do as many steps: those that are done take part until none is busy.
        if not any(gather_json(saver._job is not None and not saver._job.done.is_set())):
            break
    seen["busy step"] = statistics.mean(busy)  # the last one is without it from somewhere on
    saver.finish()
    seen["commit at the latest"] = time.perf_counter() - began
    seen["quiet step"] = statistics.median(bench.step() for _ in range(QUIET_STEPS))
    place = LocalPlace(bench.folder / "waited")
    step = bench.counter.now.step
    seen["synchronous"] = timed(
        lambda: save_checkpoint(place, bench.engine, step=step, identity={}, ranks=bench.ranks)
    )
    theirs = str(bench.folder / "deepspeed")
    seen["DeepSpeed's save"] = timed(
        lambda: bench.engine.deepspeed.save_checkpoint(
            theirs, tag="x", exclude_frozen_parameters=False
        )
    )
    return seen | measure_loads(bench, place, theirs)


def measure_loads(bench: Bench, place: LocalPlace, theirs: str) -> dict[str, float]:
    """Of the same weights by both, with the most memory that each takes besides the engine's."""
    seen: dict[str, float] = {}
    found = find_sound(place, bench.ranks)
    assert found is not None
    with memory_watched(seen, "load memory"):
        seen["load"] = timed(lambda: load_checkpoint(place, found, bench.engine))
    seen["hashes and load"] = seen["load"] + timed(lambda: find_sound(place, bench.ranks))
    with memory_watched(seen, "DeepSpeed's load memory"):
        seen["DeepSpeed's load"] = timed(
            lambda: bench.engine.deepspeed.load_checkpoint(theirs, tag="x")
        )
    for step in place.list_steps():
        if bench.ranks.is_first:
            place.delete(step)
    barrier()
    return seen


@contextmanager
def memory_watched(seen: dict[str, float], name: str) -> Iterator[None]:
    """The most anonymous memory in GB, beyond what there was before (Linux)."""
    gc.collect()
    before, most, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        seen[name] = max(0, most - before) / 1e9


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def plain_copy(num_bytes: int) -> Callable[[], float]:
    """Seconds of a copy in host memory whose pages are there on both sides."""
    source = torch.ones(num_bytes, dtype=torch.uint8)
    target = torch.ones(num_bytes, dtype=torch.uint8)
    return lambda: timed(lambda: target.copy_(source))


def ratios(rounds: list[dict[str, float]], of: str, to: str) -> float:
    return statistics.median(seen[of] / seen[to] for seen in rounds)


def print_table(bench: Bench, num_bytes: int) -> None:
    ranks = bench.ranks
    where = "CPU" if bench.device.type == "cpu" else device_name(bench.device)
    print(
        f"{sum(p.numel() for _, p in bench.engine.named_parameters()):,} parameters held, "
        f"{bench.config.engine.precision}, ZeRO {bench.config.engine.zero_stage}, {where}, "
        f"{ranks.world_size} ranks of {torch.get_num_threads()} threads on {num_cores()} cores, "
        f"{num_bytes / 1e9:.2f} GB a rank, {len(bench.rounds)} rounds"
    )
    given = sys.argv[1:-3]  # without what `start_ranks` adds
    print(f"command: {' '.join(['python benchmarks/checkpoint.py', *given])}\n")
    for name in bench.rounds[0]:
        median = statistics.median(seen[name] for seen in bench.rounds)
        unit = "GB" if name.endswith("memory") else "s"
        print(f"{name:<58}{median:>10.3f} {unit}")
    print()
    for name, (of, to) in RATIOS.items():
        print(f"{name:<66}{ratios(bench.rounds, of, to):>8.3f}")


def cross_stages(arguments: argparse.Namespace, device: torch.device, folder: Path) -> None:
    """The next loss after a save, by the stage that saved and by another that has loaded it."""
    print("\nresume across ZeRO stages: the next step's loss")
    for writer, reader in STAGES_CROSSED:
        place = LocalPlace(folder / f"cross-{writer}")
        seen = []
        for stage in (writer, reader):
            config = read_config(arguments, f"engine.zero_stage={stage}")
            bench = open_bench(config, device, folder, Ranks())
            if stage == writer:
                save_checkpoint(place, bench.engine, step=1, identity={}, ranks=Ranks())
            else:
                manifest = find_sound(place, Ranks())
                assert manifest is not None
                load_checkpoint(place, manifest, bench.engine)
            seen.append(next(bench.reports).loss)
            bench.engine.deepspeed.destroy()
            del bench
            free(device)
        shutil.rmtree(place.root)
        print(f"  {writer} → {reader}: {seen[0]:.6f}, {seen[1]:.6f}")


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def read_config(arguments: argparse.Namespace, *more: str) -> RunConfig:
    precision = "bf16" if arguments.gpu else "fp32"
    fixed = [f"engine.precision={precision}", f"engine.zero_stage={arguments.zero_stage}"]
    return build_config(arguments.shape, [*fixed, *arguments.set, *more])


def run(arguments: argparse.Namespace) -> None:
    ranks = ranks_from_environment()
    device = torch.device("cuda", 0) if arguments.gpu and torch.cuda.is_available() else None
    device = device or torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(arguments.threads)
    group = open_process_group(ranks, device)
    group.__enter__()  # until the process ends: see gpu_check.join_group
    atexit.register(group.__exit__, None, None, None)
    folder = Path(arguments.folder)
    bench = open_bench(read_config(arguments), device, folder, ranks)
    num_bytes = sum(part.bytes for part in parts_of(owned_fragments(bench.engine)))
    copy = plain_copy(num_bytes)
    with closing(bench.open_saver()) as saver:
        for _ in range(arguments.rounds):
            bench.rounds.append(measure_round(bench, saver, copy))
    if ranks.is_first:
        print_table(bench, num_bytes)
    if arguments.gpu:
        bench.engine.deepspeed.destroy()
        del bench, saver, copy
        free(device)
        cross_stages(arguments, device, folder)


def start_ranks(number: int, folder: str) -> int:
    """This script once more in every rank; the first exit code that is not 0."""
    master = ("127.0.0.1", find_free_port())
    started = [
        subprocess.Popen(
            [sys.executable, *sys.argv, "--is-rank", "--folder", folder],
            env=os.environ
            | environment_for(
                rank,
                world_size=number,
                local_rank=rank,
                local_world_size=number,
                node_rank=0,
                master=master,
            ),
        )
        for rank in range(number)
    ]
    codes = [process.wait() for process in started]
    return next((code for code in codes if code), 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--gpu", action="store_true", help="on CUDA, else on the CPU what it does")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--threads", type=int, help="a rank's; default: one core is left over")
    parser.add_argument("--folder", help="for the checkpoints, which are removed; default: /tmp's")
    parser.add_argument("--is-rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    arguments.shape = arguments.shape or ("llama_1b" if arguments.gpu else "200m")
    if arguments.threads is None:
        arguments.threads = max(1, (num_cores() - 1) // arguments.ranks)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.is_rank:
        run(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="lmscale-checkpoints-", dir=arguments.folder) as folder:
        sys.exit(start_ranks(arguments.ranks, folder))


if __name__ == "__main__":
    main()
