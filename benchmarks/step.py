"""Time a training step of lmscale against the same model in a bare torch loop, in one run.

    python benchmarks/step.py                                  # a small shape; gpt2_124m on a GPU
    python benchmarks/step.py --config configs/demo.yaml --set engine.zero_stage=2
    python benchmarks/step.py --layers 8 --width 512 --against bare autocast trainer

The loops take turns, round after round, on the same random micro-batches; what is printed are
medians over the rounds, and the ratio's is taken over ratios within a round, so that a machine that
slows down does so for both. ``training_loops.py`` says what each loop does.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from synthetic import SHAPES, build_config, random_steps
from trainer_loop import TrainerLoop
from training_loops import AutocastLoop, BareLoop, LmscaleLoop, TrainingLoop

from lmscale.config import BatchPlan, RunConfig, load_config, plan_batches
from lmscale.model.family import account_model
from lmscale.ranks.device import device_name, faster_precision, peak_tflops, product_rates
from lmscale.ranks.precision import AUTO, fit_precision, with_precision
from lmscale.ranks.ranks import Ranks, open_process_group
from lmscale.runs.environment import num_cores

WARM_UP = 2  # steps of each loop before the first round: allocators fill, kernels are chosen
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
FLAGS = {  # option → the setting it overrides
    "layers": "model.layers",
    "width": "model.width",
    "heads": "model.heads",
    "kv-heads": "model.kv_heads",
    "vocab": "model.vocab_size",
    "sequence-length": "stream.sequence_length",
    "windows": "batch.global_windows",
    "micro-windows": "batch.micro_windows",
    "precision": "engine.precision",
    "zero-stage": "engine.zero_stage",
}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One loop's rounds."""

    seconds: tuple[float, ...]  # per step, one number a round
    losses: tuple[float, ...]

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds)


def measure(
    loops: Mapping[str, TrainingLoop],
    *,
    rounds: int,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run the loops in turns; seconds per step of every round."""
    for loop in loops.values():
        loop.run(WARM_UP)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            seconds[name].append(loop.run(steps, clock) / steps)
    return {
        name: Timing(seconds=tuple(seconds[name]), losses=tuple(loop.losses))
        for name, loop in loops.items()
    }


def ratio(of: Timing, to: Timing) -> float:
    """How many times as fast ``of`` is: the median of the ratios within each round."""
    return statistics.median(b / a for a, b in zip(of.seconds, to.seconds, strict=True))


def open_loops(
    config: RunConfig,
    plan: BatchPlan,
    device: torch.device,
    against: Sequence[str],
    stack: ExitStack,
) -> dict[str, TrainingLoop | None]:
    """The loops by name, None where one is not installed; closed with ``stack``."""
    builders: dict[str, Callable[[], TrainingLoop]] = {
        "lmscale": lambda: LmscaleLoop(config, plan, device, random_steps(config, plan)),
        "bare": lambda: BareLoop(config, plan, device, random_steps(config, plan)),
        "autocast": lambda: AutocastLoop(config, plan, device, random_steps(config, plan)),
        "trainer": lambda: TrainerLoop(config, plan, device),
    }
    loops: dict[str, TrainingLoop | None] = {}
    for key in ("lmscale", *against):
        try:
            loop = builders[key]()
        except ImportError:
            loops[TrainerLoop.name] = None
            continue
        stack.callback(loop.close)
        loops[loop.name] = loop
    return loops


def render_table(
    config: RunConfig,
    loops: Mapping[str, object],
    timings: Mapping[str, Timing],
    peak: float | None,
) -> str:
    """Aligned columns; lmscale's ratio to each of the others stands in their line."""
    flops = account_model(config.model, config.sizes).flops
    lines = [f"{'loop':22}{'ms/step':>10}{'tokens/s':>12}{'MFU':>8}{'causal':>8}{'lmscale ×':>11}"]
    for name in loops:
        if name not in timings:
            lines.append(f"{name:22}{'not installed':>20}")
            continue
        seconds = timings[name].step_seconds
        speed = config.tokens_per_step / seconds
        mfus = [
            f"{speed * each / 1e12 / peak:8.1%}" if peak else f"{'-':>8}"
            for each in (flops.dense, flops.causal)
        ]
        of = "" if name == "lmscale" else f"{ratio(timings['lmscale'], timings[name]):11.3f}"
        lines.append(f"{name:22}{1e3 * seconds:10.1f}{speed:12,.0f}{''.join(mfus)}{of}")
    return "\n".join(lines)


def render_losses(timings: Mapping[str, Timing]) -> str:
    """How far the bare loop's losses are from lmscale's: the same arithmetic gives the same."""
    if BareLoop.name not in timings:
        return ""
    ours, theirs = timings["lmscale"].losses, timings[BareLoop.name].losses
    far = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    return f"largest relative difference from the bare loop's loss in {len(ours)} steps: {far:.1e}"


def describe_machine(device: torch.device) -> str:
    cores = f"{num_cores()} cores, {torch.get_num_threads()} threads"
    python = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{device_name(device)}, {cores}, {python}"


def describe_work(config: RunConfig, plan: BatchPlan) -> str:
    model = config.model
    parameters = account_model(config.model, config.sizes).total
    return (
        f"{parameters / 1e6:,.1f}M parameters ({model.layers} layers, width {model.width}, "
        f"{config.vocab_size} ids), T = {config.stream.sequence_length}, "
        f"{plan.micro_windows} windows × {plan.accumulation} micro-batches a step, "
        f"{config.engine.precision}, ZeRO {config.engine.zero_stage}, "
        f"{'compiled blocks' if config.engine.compile else 'eager'}, "
        f"{'documents masked' if config.stream.mask_documents else 'no document masks'}"
    )


def run(
    config: RunConfig,
    device: torch.device,
    *,
    against: Sequence[str],
    rounds: int,
    steps: int,
    clock: str = "wall",
) -> tuple[dict[str, TrainingLoop | None], dict[str, Timing]]:
    """Measure; the loops' names with None where one is not installed, and the timings."""
    plan = plan_batches(
        global_windows=config.batch.global_windows,
        micro_windows=config.batch.micro_windows,
        data_ranks=1,
    )
    peak = config.train.peak_tflops or peak_tflops(device_name(device), config.engine.precision)
    with ExitStack() as stack:
        stack.enter_context(open_process_group(Ranks(), device))
        loops = open_loops(config, plan, device, against, stack)
        installed = {name: loop for name, loop in loops.items() if loop is not None}
        timings = measure(installed, rounds=rounds, steps=steps, clock=CLOCKS[clock])
    print(describe_machine(device))
    print(describe_work(config, plan))
    print(f"median of {rounds} rounds of {steps} steps each, in turns, {clock} time")
    print(render_table(config, loops, timings, peak))
    print(render_losses(timings))
    if peak:
        print(f"MFU of {peak:g} TFLOP/s: 6N + 12LdT per token; causal: 6N + 6LdT")
    return loops, timings


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", help="a run's YAML; only its shapes and engine are used")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="instead of --config")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    for flag, setting in FLAGS.items():
        parser.add_argument(f"--{flag}", help=f"the same as --set {setting}=")
    parser.add_argument("--compile", action="store_true", help="engine.compile, in both loops")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of each loop in a round")
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="process: CPU time of all threads, for a CPU that others use too",
    )
    parser.add_argument(
        "--against", nargs="*", choices=("bare", "autocast", "trainer"), default=["bare"]
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse_arguments(arguments)
    is_cuda = given.device == "cuda" or (given.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", 0) if is_cuda else torch.device("cpu")
    flags = {setting: getattr(given, flag.replace("-", "_")) for flag, setting in FLAGS.items()}
    overrides = [f"{setting}={value}" for setting, value in flags.items() if value is not None]
    if not (is_cuda or given.config or given.precision):
        # Where a CPU has no units for bf16, it would be timed for minutes.
        overrides.insert(0, f"engine.precision={faster_precision(product_rates())}")
    overrides += ["engine.compile=true"] if given.compile else []
    overrides += given.set
    if given.config:
        config = load_config(given.config, overrides)
    else:
        config = build_config(given.shape or ("gpt2_124m" if is_cuda else "small"), overrides)
    if config.engine.precision == AUTO:
        config = with_precision(config, fit_precision(device).precision)
    run(
        config,
        device,
        against=given.against,
        rounds=given.rounds,
        steps=given.steps,
        clock=given.clock,
    )


if __name__ == "__main__":
    main()
