"""Hold the planner's memory against what training processes take, over shapes drawn at random.

    python benchmarks/plan_memory.py                    # 30 shapes, each in a process of its own
    python benchmarks/plan_memory.py --shapes 5 --seed 7

A process is one CPU rank, a fork of one that has loaded everything. It trains a tiny model for a
step, so that libraries have their own memory, and notes its resident set. Then the shape's engine
is built and trained for two steps. What counts is the peak of the resident set since then (the
kernel's VmHWM, set back by /proc/self/clear_refs) less what was noted. glibc gives freed blocks of
64 KiB and more back at once (MALLOC_MMAP_THRESHOLD_), as CUDA's allocator would reuse them. The
planner's figure is that of the worst moment, without process, loader and saves. Nothing here needs
an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig
from lmscale.config.load import parse_config
from lmscale.files.printing import align_rows
from lmscale.plan.devices import find_device, plan_machine
from lmscale.plan.memory import Memory, plan_memory

TARGET = 0.1
MOST_WORK = 1.2e11  # FLOPs of a step
LEAST_BYTES = 100e6  # below, a library's noise counts
OF_PROCESS = ("process", "loader", "save's copy")


def draw_shape(draws: random.Random) -> list[str]:
    """Overrides of a random family, sizes, switches, optimizer and stage."""
    while True:
        overrides = _draw(draws)
        config = build_config(overrides)
        model: Any = config.model
        if model.family == "encoder":  # whose masks a tokenizer is read for
            continue
        tokens = config.batch.global_windows * config.stream.sequence_length
        layers = model.layers * (2 if model.family == "encoder_decoder" else 1)
        elements = layers * 12 * model.width**2 + config.vocab_size * model.width
        if 6 * elements * tokens < MOST_WORK and held(plan(config)) > LEAST_BYTES:
            return overrides


def _draw(draws: random.Random) -> list[str]:
    family = draws.choice(("decoder", "decoder", "decoder", "encoder", "encoder_decoder"))
    heads, layers = draws.choice((4, 8)), draws.randint(2, 8)
    width, length = heads * draws.choice((32, 64)), draws.choice((128, 256, 512))
    micro, accumulation = draws.choice((2, 4, 8)), draws.choice((1, 1, 2))
    vocabulary = draws.choice((2048, 8192, 16384))
    model = {"family": family, "layers": layers, "width": width, "heads": heads}
    model["activation_checkpoint_every"] = draws.choice((0, 0, 1, 2))
    objective, masks = "causal", draws.random() < 0.6
    if family == "decoder":
        gpt = {"norm": "layernorm", "activation": "gelu", "bias": True, "positions": "learned"}
        model |= gpt if draws.random() < 0.4 else {"kv_heads": draws.choice((heads, heads // 2))}
        model["tied_embeddings"] = draws.random() < 0.5
    else:
        objective = "masked" if family == "encoder" else "spans"
        masks = masks and family == "encoder"
    return [
        f"model={json.dumps(model)}",
        f"objective.name={objective}",
        f"tokenizer.vocab_size={vocabulary}",
        f"stream={{sequence_length: {length}, mask_documents: {str(masks).lower()}}}",
        f"batch={{global_windows: {micro * accumulation}, micro_windows: {micro}}}",
        f"engine={{precision: {draws.choice(('bf16', 'fp32'))}, "
        f"zero_stage: {draws.randint(0, 3)}, schedule: {{kind: constant}}, "
        f"optimizer: {{kind: {draws.choice(('adamw', 'adamw', 'lion'))}}}}}",
    ]


def build_config(overrides: Sequence[str]) -> RunConfig:
    return parse_config("run: {name: check}", [*overrides, "train.steps=1000000"])


def plan(config: RunConfig) -> Memory:
    return plan_memory(config, plan_machine(find_device("cpu")))


def held(memory: Memory) -> int:
    return sum(size for name, size in memory.components.items() if name not in OF_PROCESS)


def measure(overrides: Sequence[str]) -> int:
    """In a process of its own: peak bytes over what the process had before."""
    import torch
    from synthetic import random_steps

    from lmscale.engine.engine import Engine
    from lmscale.objective.scores import to_device
    from lmscale.ranks.mesh import plan_mesh
    from lmscale.ranks.ranks import Ranks, open_process_group
    from lmscale.train.initial import build_run_engine

    device, ranks = torch.device("cpu"), Ranks()

    def train(config: RunConfig, steps: int) -> Engine:
        batch = config.batch.plan(1)
        engine = build_run_engine(config, batch, plan_mesh(ranks), device, fill=True)
        for _, step in zip(range(steps), random_steps(config, batch), strict=False):
            losses = [
                lambda arrays=micro.arrays: engine(**to_device(arrays, device)).terms()
                for micro in step.micro_batches
            ]
            engine.accumulate(losses, targets=step.targets)
            engine.update(learning_rate=1e-4)
        return engine

    with open_process_group(ranks, device):
        config = build_config(overrides)
        sizes: dict[str, Any] = {"layers": 1, "width": 64, "heads": 2}
        sizes |= {"kv_heads": None} if config.model.family == "decoder" else {}
        tiny = config.model_copy(update={"model": config.model.model_copy(update=sizes)})
        train(tiny, 1)
        before = _read("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        kept = train(config, 2)
        most = _read("VmHWM")
        assert kept is not None
    return most - before


def load_all() -> None:
    """Load once what every process needs; they are forks of this one."""
    import torch
    import torch._dynamo  # DeepSpeed's stage 3 wants it to be there before

    from lmscale.engine.build import prepare_deepspeed
    from lmscale.train import initial  # noqa: F401

    torch.set_num_threads(1)
    prepare_deepspeed(torch.device("cpu"))


def begin_measuring(overrides: Sequence[str]) -> tuple[int, int]:
    """``measure`` in a fork: its process id, and where it writes its answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, str(measure(overrides)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    return child, reading


def end_measuring(child: int, reading: int) -> int:
    with os.fdopen(reading) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a process ended with status {status}")
    return int(text)


def _read(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    match = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    assert match, f"/proc/self/status has no {key}"
    return int(match[1]) * 1024


def describe(config: RunConfig) -> str:
    model: Any = config.model
    again = model.activation_checkpoint_every
    return (
        f"{model.family} {model.layers} × {model.width}, V {config.vocab_size}, "
        f"{config.batch.micro_windows} × {config.stream.sequence_length} of "
        f"{config.batch.global_windows}, ZeRO {config.engine.zero_stage} "
        f"{config.engine.precision} {config.engine.optimizer.kind}"
        f"{f', recompute {again}' if again else ''}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    given = parser.parse_args(arguments)
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") != "65536":  # read as a process begins
        os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    load_all()
    draws = random.Random(given.seed)
    rows, errors = [["shape", "plan MB", "measured", "error", "worst moment"]], []
    shapes = [draw_shape(draws) for _ in range(given.shapes)]
    running = [begin_measuring(shape) for shape in shapes[: given.jobs]]
    for number, overrides in enumerate(shapes):
        measured = end_measuring(*running[number])
        if len(running) < len(shapes):
            running.append(begin_measuring(shapes[len(running)]))
        config = build_config(overrides)
        memory = plan(config)
        errors.append(held(memory) / measured - 1)
        figures = (f"{held(memory) / 1e6:.0f}", f"{measured / 1e6:.0f}", f"{errors[-1]:+.1%}")
        rows.append([describe(config), *figures, memory.moment])
        print(" | ".join(rows[-1]), flush=True)
    print(align_rows(rows))
    sizes = sorted(map(abs, errors))
    print(
        f"{sum(size <= TARGET for size in sizes)} of {len(sizes)} within {TARGET:.0%}; median "
        f"{statistics.median(sizes):.1%}, largest {sizes[-1]:.1%}"
    )


if __name__ == "__main__":
    main()
