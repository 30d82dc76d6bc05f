"""Hold the planner's step time against steps of random shapes, on this machine's CPU ranks.

    OMP_NUM_THREADS=1 python benchmarks/plan_check.py                       # 30 shapes, one rank
    OMP_NUM_THREADS=1 python benchmarks/plan_check.py --clock process       # where others compute
    OMP_NUM_THREADS=1 python benchmarks/plan_check.py --save times.jsonl
    python benchmarks/plan_check.py --from times.jsonl       # the table again, measuring nothing

Calibration and measurement take turns: after every step that the calibration is fitted to comes a
shape that it is not, and products are timed at the begin, in the middle and at the end. What is
printed: each shape's planned and measured milliseconds, by phase, and the load beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch

from lmscale.config import RunConfig
from lmscale.config.load import parse_config
from lmscale.files.printing import align_rows
from lmscale.plan.calibration import ProductTime
from lmscale.plan.counts import PHASES
from lmscale.plan.devices import Device, Machine, plan_machine
from lmscale.plan.speed import plan_step
from lmscale.ranks.device import cpu_name, faster_precision, product_rates
from lmscale.ranks.ranks import Ranks, open_process_group
from lmscale.train.calibrate import build_device, plan_steps
from lmscale.train.measured_steps import Clock, open_step_loop, time_products, time_steps

TARGET = 0.2
MOST_WORK = 3e10  # FLOPs of a step, so that a busy core does one in a second or two


def draw_shape(draws: random.Random, precision: str) -> RunConfig:
    """A decoder of random sizes, switches and stage, small enough for a CPU."""
    while True:
        heads, head_width = draws.choice((1, 2, 4, 8)), draws.choice((16, 32, 64))
        layers, length = draws.randint(1, 6), draws.choice((32, 64, 128, 256, 512))
        micro, accumulation = draws.choice((1, 2, 4, 8)), draws.choice((1, 1, 2, 4))
        vocabulary, width = draws.choice((512, 1024, 4096, 8192)), heads * head_width
        stage, recompute = draws.randint(0, 3), draws.choice((0, 0, 1))
        is_gpt = draws.random() < 0.4
        variant = "norm: layernorm, activation: gelu, bias: true, positions: learned"
        kv_heads = draws.choice((heads, max(1, heads // 2)))
        tokens = length * micro * accumulation
        if 6 * tokens * (layers * 12 * width**2 + vocabulary * width) > MOST_WORK:
            continue
        return parse_config(
            "run: {name: check}",
            [
                f"model={{layers: {layers}, width: {width}, heads: {heads}, kv_heads: {kv_heads}, "
                f"vocab_size: {vocabulary}, tied_embeddings: {str(draws.random() < 0.5).lower()}, "
                f"activation_checkpoint_every: {recompute}{', ' + variant if is_gpt else ''}}}",
                f"tokenizer.vocab_size={vocabulary}",
                f"stream={{sequence_length: {length}, "
                f"mask_documents: {str(draws.random() < 0.7).lower()}}}",
                f"batch={{global_windows: {micro * accumulation}, micro_windows: {micro}}}",
                f"engine={{precision: {precision}, zero_stage: {stage}, "
                "schedule: {kind: constant}}",
                "train.steps=1000000",
            ],
        )


def describe(config: RunConfig) -> str:
    model = config.model
    return (
        f"{model.layers} × {model.width} ({model.heads}/{model.kv_heads}), V {config.vocab_size}, "
        f"T {config.stream.sequence_length} × {config.batch.micro_windows} of "
        f"{config.batch.global_windows}, ZeRO {config.engine.zero_stage}"
        f"{', again' if model.activation_checkpoint_every else ''}, {model.norm}"
    )


Measured = list[tuple[RunConfig, dict[str, float]]]


@dataclass(kw_only=True)
class Times:
    """All that was measured."""

    products: list[tuple[ProductTime, ...]] = field(default_factory=list)
    """Of every pass over the products."""
    fitted: Measured = field(default_factory=list)
    checked: Measured = field(default_factory=list)

    def build(self, precision: str, clock: Clock) -> Device:
        """The calibrated device."""
        return build_device(
            Ranks(),
            torch.device("cpu"),
            precision=precision,
            clock=clock,
            products=merge_products(self.products),
            rows=self.fitted,
        )


def save_times(times: Times, path: Path) -> None:
    """A row a pass over products, and a step."""
    rows = [{"products": [p.model_dump() for p in each]} for each in times.products]
    for name in ("fitted", "checked"):
        rows += [
            {name: config.model_dump(mode="json"), "seconds": seconds}
            for config, seconds in getattr(times, name)
        ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def load_times(path: Path) -> Times:
    times = Times()
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "products" in row:
            times.products.append(tuple(ProductTime.model_validate(p) for p in row["products"]))
            continue
        name = "fitted" if "fitted" in row else "checked"
        getattr(times, name).append((RunConfig.model_validate(row[name]), row["seconds"]))
    return times


def measure(
    shapes: Sequence[RunConfig], precision: str, clock: Clock, steps: int, save: Path | None
) -> Times:
    """Calibration and shapes in turns; what is measured so far is saved after every pair."""
    ranks, device = Ranks(), torch.device("cpu")
    calibration = list(plan_steps(precision, 1))
    times = Times(products=[time_products(precision, device, clock)])
    for is_last in (False, True):  # stage 3 leaves its own linear layers to all later models
        own = [c for c in calibration if (c.engine.zero_stage == 3) is is_last]
        others = [c for c in shapes if (c.engine.zero_stage == 3) is is_last]
        for pair in zip_longest(own, others):
            for config, rows in zip(pair, (times.fitted, times.checked), strict=True):
                if config is not None:
                    with open_step_loop(config, ranks, device, clock) as loop:
                        rows.append((config, time_steps(loop, steps)))
            if save is not None:
                save_times(times, save)
        times.products.append(time_products(precision, device, clock))
    if save is not None:
        save_times(times, save)
    return times


def merge_products(passes: Sequence[Sequence[ProductTime]]) -> tuple[ProductTime, ...]:
    """The least of every product's times."""
    return tuple(
        same[0].model_copy(
            update={
                key: min(getattr(each, key) for each in same)
                for key in ("forward_seconds", "backward_seconds")
            }
        )
        for same in zip(*passes, strict=True)
    )


def render(machine: Machine, checked: Measured) -> tuple[str, list[float]]:
    rows = [["shape", "plan ms", "measured", "error", *(f"{name}" for name in PHASES)]]
    errors = []
    for config, seconds in checked:
        step = plan_step(config, machine)
        planned = {phase.name: phase.seconds for phase in step.phases}
        taken = sum(seconds.values())
        errors.append(step.seconds / taken - 1)
        rows.append(
            [
                describe(config),
                f"{1e3 * step.seconds:.1f}",
                f"{1e3 * taken:.1f}",
                f"{errors[-1]:+.0%}",
                *(f"{planned[name] / seconds[name] - 1:+.0%}" for name in PHASES),
            ]
        )
    return align_rows(rows), errors


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each shape")
    parser.add_argument("--precision", choices=("bf16", "fp32"))
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep what was measured")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="given", help="measure nothing")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    given = parser.parse_args(arguments)
    precision = given.precision or faster_precision(product_rates())
    draws = random.Random(given.seed)
    loads = [os.getloadavg()[0]]
    if given.given is not None:
        times = load_times(given.given)
    else:
        shapes = [draw_shape(draws, precision) for _ in range(given.shapes)]
        with open_process_group(Ranks(), torch.device("cpu")):
            times = measure(shapes, precision, given.clock, given.steps, given.save)
    loads.append(os.getloadavg()[0])
    device = times.build(precision, given.clock)
    machine = plan_machine(device)
    text, errors = render(machine, times.checked)
    print(
        f"{cpu_name()}, {torch.get_num_threads()} threads, {precision}, {given.clock} time, load "
        f"{loads[0]:.1f} before and {loads[1]:.1f} after"
    )
    print(text)
    sizes = sorted(map(abs, errors))
    assert device.measured is not None, "build_device has measured it"
    print(
        f"{sum(size <= TARGET for size in sizes)} of {len(sizes)} within {TARGET:.0%}; median "
        f"{statistics.median(sizes):.1%}, largest {sizes[-1]:.1%}; the steps that were fitted: "
        f"median {device.measured.fit_error:.1%}"
    )


if __name__ == "__main__":
    main()
