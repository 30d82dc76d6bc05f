"""Part ``speed``: tokens/s, MFU and memory beside a bare torch loop, and a loader that feeds it."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from gpu_check import Bench, Check, NotRun, expect, gib, join_group
from random_shards import EOS, write_dataset
from step import WARM_UP, Timing, measure, ratio
from synthetic import build_config, random_steps
from training_loops import BareLoop, LmscaleLoop, TrainingLoop

from lmscale.config import BatchPlan, RunConfig, plan_batches
from lmscale.model.family import account_model
from lmscale.objective.objective import build_preparation
from lmscale.ranks.device import device_name, peak_tflops
from lmscale.stream.loader import open_loader
from lmscale.stream.stream import open_stream
from lmscale.stream.worker import LoaderJob

ROUNDS, STEPS = 3, 3
TARGET_RATIO = 0.98
TARGET_WAIT = 0.01
FIRST_LOSS_LIMIT = 0.01  # of the same weights in bf16, whatever the kernels
Builder = Callable[[], TrainingLoop]


def plan_of(config: RunConfig) -> BatchPlan:
    return plan_batches(
        global_windows=config.batch.global_windows,
        micro_windows=config.batch.micro_windows,
        data_ranks=1,
    )


def shape_for(bench: Bench, shape: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The shape, or the tiny one in a dry run, where only half the way is checked."""
    return build_config("tiny" if bench.is_dry_run else shape, overrides)


def open_measured(builder: Builder, bench: Bench) -> tuple[TrainingLoop, float]:
    """A loop after its warm-up, and the most memory it had allocated, beside all that was there."""
    before = 0
    if bench.is_cuda:
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(bench.device)
        torch.cuda.reset_peak_memory_stats(bench.device)
    loop = builder()
    loop.run(WARM_UP)
    peak = torch.cuda.max_memory_allocated(bench.device) - before if bench.is_cuda else 0
    return loop, peak


def describe_speed(bench: Bench, config: RunConfig, timing: Timing, memory: float) -> str:
    speed = config.tokens_per_step / timing.step_seconds
    name = device_name(bench.device)
    peak = peak_tflops(name, config.engine.precision)
    flops = account_model(config.model, config.sizes).flops
    text = f"{speed:,.0f} tokens/s"
    if peak:
        shares = [speed * each / 1e12 / peak for each in (flops.dense, flops.causal)]
        text += f", MFU {shares[0]:.1%} (causal {shares[1]:.1%}) of {peak:g} TFLOP/s"
    return text + (f", {gib(memory)}" if bench.is_cuda else "")


def check_speed(bench: Bench, shape: str, overrides: Sequence[str]) -> str:
    """lmscale and the bare loop in turns. Slower than the target is said, not failed."""
    config = shape_for(bench, shape, overrides)
    if config.engine.compile and bench.is_dry_run:
        raise NotRun("no GPU (compiling for a CPU takes a C++ compiler and a minute)")
    join_group(bench.device)
    plan = plan_of(config)
    builders: dict[str, Builder] = {
        kind.name: partial(
            kind,
            config,
            plan,
            bench.device,
            random_steps(config, plan),
            weights_from_device=True,
        )
        for kind in (LmscaleLoop, BareLoop)
    }
    loops: dict[str, TrainingLoop] = {}
    memory: dict[str, float] = {}
    try:
        for name, builder in builders.items():
            loops[name], memory[name] = open_measured(builder, bench)
        timings = measure(loops, rounds=1 if bench.is_dry_run else ROUNDS, steps=STEPS)
    finally:
        close_all(loops, bench)
    for name, timing in timings.items():
        expect(bool(np.isfinite(timing.losses).all()), f"{name}: a loss is not finite")
    times = ratio(timings[LmscaleLoop.name], timings[BareLoop.name])
    parameters = account_model(config.model, config.sizes).total
    lines = [
        f"{parameters / 1e6:,.1f}M parameters, T = {config.stream.sequence_length}, "
        f"{plan.micro_windows} windows × {plan.accumulation}, {config.engine.precision}, "
        f"ZeRO {config.engine.zero_stage}"
    ]
    lines += [
        f"{name}: {describe_speed(bench, config, timing, memory[name])}"
        for name, timing in timings.items()
    ]
    verdict = "" if times >= TARGET_RATIO or bench.is_dry_run else f", target {TARGET_RATIO}"
    return "\n".join([*lines, f"lmscale × bare: {times:.3f}{verdict}"])


def close_all(loops: dict[str, TrainingLoop], bench: Bench) -> None:
    for loop in loops.values():
        loop.close()
    loops.clear()
    gc.collect()
    torch._dynamo.reset()
    if bench.is_cuda:
        torch.cuda.empty_cache()


def check_all_stages(bench: Bench) -> str:
    """GPT-2's step at the other stages: what each costs on one device."""
    join_group(bench.device)
    seen = []
    for stage in (0, 1, 2, 3):
        config = shape_for(bench, "gpt2_124m", [f"engine.zero_stage={stage}"])
        plan = plan_of(config)
        loop, memory = open_measured(
            partial(
                LmscaleLoop,
                config,
                plan,
                bench.device,
                random_steps(config, plan),
                weights_from_device=True,
            ),
            bench,
        )
        timing = measure({"lmscale": loop}, rounds=1, steps=STEPS)["lmscale"]
        close_all({"lmscale": loop}, bench)
        seen.append(f"ZeRO {stage}: {describe_speed(bench, config, timing, memory)}")
    return "\n".join(seen)


def check_choices(
    bench: Bench, shape: str, overrides: Sequence[str], choices: Mapping[str, Sequence[str]]
) -> str:
    """The bare loop, then lmscale with one setting after the other: tokens/s, memory, and the ratio
    to the bare loop. What they are to compute is the same, so the first losses are alike.
    """
    join_group(bench.device)
    config = shape_for(bench, shape, overrides)
    plan = plan_of(config)
    kinds: dict[str, tuple[type, RunConfig]] = {BareLoop.name: (BareLoop, config)}
    for name, more in choices.items():
        chosen = shape_for(bench, shape, [*overrides, *more])
        if not (chosen.engine.compile and bench.is_dry_run):  # that takes a minute on a CPU
            kinds[name] = (LmscaleLoop, chosen)
    seen, bare = [], None
    for name, (kind, chosen) in kinds.items():
        steps = random_steps(chosen, plan)
        builder = partial(kind, chosen, plan, bench.device, steps, weights_from_device=True)
        loop, memory = open_measured(builder, bench)
        timing = measure({name: loop}, rounds=1, steps=STEPS)[name]
        close_all({name: loop}, bench)
        bare = bare or timing
        off = abs(timing.losses[0] - bare.losses[0]) / bare.losses[0]
        expect(off < FIRST_LOSS_LIMIT, f"{name}: its first loss is {off:.1%} from the bare loop's")
        times = f", {ratio(timing, bare):.3f} × bare" if timing is not bare else ""
        seen.append(f"{name}: {describe_speed(bench, chosen, timing, memory)}{times}")
    return "\n".join(seen)


ATTENTION = {"cut sequences": (), "FlexAttention": ("model.attention=flex",)}
EVERY = "model.activation_checkpoint_every=1"
RECOMPUTED = {
    "nothing recomputed": (),
    "blocks recomputed": (EVERY,),
    "… but attention": (EVERY, "model.activation_checkpoint_saves=attention"),
    "… but products": (EVERY, "model.activation_checkpoint_saves=products"),
    "compiled, half of the memory": ("engine.compile=true", "engine.activation_memory_budget=0.5"),
}


def write_random_shards(folder: Path, vocab_size: int, tokens: int) -> None:
    """Eight shards of random documents."""
    generator = np.random.default_rng(0)
    sizes = (generator.exponential(700, max(4, tokens // 8 // 700)).astype(int) for _ in range(8))
    shards = (_random_documents(generator, lengths, vocab_size) for lengths in sizes)
    write_dataset(folder, shards, vocab_size=vocab_size, block_tokens=2**18)


def _random_documents(
    generator: np.random.Generator, lengths: np.ndarray, vocab_size: int
) -> Iterator[np.ndarray]:
    for length in lengths:
        ids = generator.integers(4, vocab_size, length + 1).astype(np.uint16)
        ids[-1] = EOS
        yield ids


def check_loader(bench: Bench) -> str:
    """GPT-2 fed from shards on disk, documents masked: how long the GPU waits for data."""
    join_group(bench.device)
    shards = bench.folder / "shards"
    shards.mkdir()
    config = shape_for(
        bench,
        "gpt2_124m",
        [
            "stream.mask_documents=true",
            f"stream.sources.random.shards={shards}",
            f"stream.cache.folder={bench.folder / 'cache'}",
            "engine.compile=" + ("false" if bench.is_dry_run else "true"),
        ],
    )
    steps = 4 if bench.is_dry_run else 24
    write_random_shards(shards, config.vocab_size, tokens=config.tokens_per_step * (steps + 4))
    plan = plan_of(config)
    with (
        open_stream(config.stream, seed=1) as stream,
        open_loader(
            LoaderJob(
                stream=stream,
                preparation=build_preparation(config),
                plan=plan,
                data_rank=0,
                first_n=0,
                num_steps=steps,
            ),
            workers=config.stream.workers,
        ) as loader,
    ):
        loop = LmscaleLoop(config, plan, bench.device, loader, weights_from_device=True)
        reports = list(islice(loop.reports, steps))
        close_all({"lmscale": loop}, bench)
    timed = reports[WARM_UP + 1 :]
    seconds = statistics.median(report.step_seconds for report in timed)
    waited = sum(report.wait_seconds for report in timed)
    share = waited / sum(report.step_seconds for report in timed)
    speed = config.tokens_per_step / seconds
    text = f"{speed:,.0f} tokens/s; waits for data {share:.2%} of the time, 1 worker"
    expect(bench.is_dry_run or share < TARGET_WAIT, f"{text}: not below {TARGET_WAIT:.0%}")
    return text


def check_profile(bench: Bench) -> str:
    """What a step of GPT-2 is made of, so that the next gain is known. The rest is in a file."""
    from torch.profiler import ProfilerActivity, profile

    join_group(bench.device)
    config = shape_for(bench, "gpt2_124m", ["batch.global_windows=32"])
    plan = plan_of(config)
    loop = LmscaleLoop(
        config, plan, bench.device, random_steps(config, plan), weights_from_device=True
    )
    loop.run(WARM_UP)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.is_cuda else [])
    with profile(activities=activities) as recorded:
        loop.run(1)
    close_all({"lmscale": loop}, bench)
    averages = recorded.key_averages()
    order = "self_device_time_total" if bench.is_cuda else "self_cpu_time_total"
    table = averages.table(sort_by=order, row_limit=40, max_name_column_width=80)
    (bench.folder / "profile.txt").write_text(table, encoding="utf-8")
    spent = sorted(((getattr(row, order), row.key) for row in averages), reverse=True)
    if bench.is_cuda:  # kernels alone: an operator's own device time is that of its kernels
        spent = [(each, key) for each, key in spent if not key.startswith(("aten::", "autograd"))]
    whole = sum(each for each, _ in spent) or 1.0
    return "; ".join(f"{each / whole:.0%} {key[:48]}" for each, key in spent[:8])


CHECKS = (
    Check(
        name="GPT-2 124M, eager",
        run=partial(check_speed, shape="gpt2_124m", overrides=()),
        limit_seconds=90,
    ),
    Check(
        name="GPT-2 124M, compiled blocks",
        run=partial(check_speed, shape="gpt2_124m", overrides=("engine.compile=true",)),
        limit_seconds=150,
    ),
    Check(
        name="Llama 1.3B, eager",
        run=partial(check_speed, shape="llama_1b", overrides=()),
        limit_seconds=120,
    ),
    Check(
        name="Llama 1.3B, compiled blocks",
        run=partial(check_speed, shape="llama_1b", overrides=("engine.compile=true",)),
        limit_seconds=150,
    ),
    Check(
        name="GPT-2 124M, documents masked",
        run=partial(
            check_choices,
            shape="gpt2_124m",
            overrides=("stream.mask_documents=true",),
            choices=ATTENTION,
        ),
        limit_seconds=120,
    ),
    Check(
        name="Llama 1.3B, recomputation",
        run=partial(check_choices, shape="llama_1b", overrides=(), choices=RECOMPUTED),
        limit_seconds=120,
    ),
    Check(name="GPT-2 124M from shards on disk", run=check_loader, limit_seconds=120),
    Check(name="what a step is made of", run=check_profile, limit_seconds=60),
    # Last: a model built for ZeRO 3 leaves DeepSpeed's own F.linear in torch, for every later one.
    Check(name="GPT-2 124M at ZeRO 0-3", run=check_all_stages, limit_seconds=90),
)
