"""Part ``engine``: NCCL, DeepSpeed's stages and precisions, offload, and resuming, on one rank."""

from __future__ import annotations

import gc
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_check import Bench, Check, expect, gib, join_group
from synthetic import build_config, random_steps
from training_loops import BareLoop

from lmscale.checkpoint.find import find_sound
from lmscale.checkpoint.fragments import held_fragments
from lmscale.checkpoint.load import load_checkpoint
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.config import RunConfig, plan_batches
from lmscale.engine.engine import Engine
from lmscale.engine.step_report import StepReport
from lmscale.ranks.collectives import sum_float64
from lmscale.ranks.device import peak_memory_bytes
from lmscale.ranks.mesh import Mesh
from lmscale.ranks.ranks import Ranks
from lmscale.train.initial import build_run_engine
from lmscale.train.loop import train_steps

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from plain_save import save_checkpoint  # noqa: E402

STAGES = (0, 1, 2, 3)
STEPS = 6  # each half of a resumed run is 3
TRAINING = ("engine.optimizer.lr=0.003", "train.steps=1000")
# 2^32 times any gradient of this model passes fp16's 65,504; the scale halves until it does not.
OVERFLOWING = "engine.loss_scale={initial_power: 32, window: 1000, hysteresis: 1}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An engine in training on a few batches that come round again and again."""

    config: RunConfig
    engine: Engine
    reports: Iterator[StepReport]

    def steps(self, count: int) -> list[StepReport]:
        return list(itertools.islice(self.reports, count))


@contextmanager
def open_trial(bench: Bench, overrides: Sequence[str], *, first_step: int = 0) -> Iterator[Trial]:
    """A tiny run from its initial weights."""
    config = build_config("tiny", [*TRAINING, *overrides])
    plan = plan_of(config)
    batches = random_steps(config, plan)
    for _ in range(first_step):
        next(batches)
    # Bits are compared: torch names an operation on the way that does not repeat its own.
    torch.use_deterministic_algorithms(True, warn_only=True)
    join_group(bench.device)
    engine = build_run_engine(config, plan, Mesh(), bench.device, fill=True)
    reports = train_steps(
        engine,
        batches,
        config,
        first_step=first_step,
    )
    try:
        yield Trial(config=config, engine=engine, reports=reports)
    finally:
        reports.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator
        engine.deepspeed.destroy()
        del engine, reports
        free_memory(bench)


def plan_of(config: RunConfig):
    return plan_batches(
        global_windows=config.batch.global_windows,
        micro_windows=config.batch.micro_windows,
        data_ranks=1,
    )


def free_memory(bench: Bench) -> None:
    gc.collect()
    if bench.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)


def precisions(bench: Bench) -> tuple[str, ...]:
    return ("fp32", "bf16", "fp16") if bench.is_cuda else ("fp32", "bf16")


def losses(reports: Sequence[StepReport]) -> list[float]:
    return [report.loss for report in reports]


def furthest(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def check_group(bench: Bench) -> str:
    """The process group of one rank is made and reduces, over NCCL on a GPU."""
    import torch.distributed as dist

    join_group(bench.device)
    backend = dist.get_backend()
    expect(backend == ("nccl" if bench.is_cuda else "gloo"), f"the backend is {backend}")
    total = torch.full((3,), 2.0, device=bench.device)
    dist.all_reduce(total)
    expect(total.tolist() == [2.0] * 3, f"the sum over one rank is {total.tolist()}")
    expect(sum_float64([1.5, 2.0**52]) == [1.5, 2.0**52], "sum_float64 loses bits")
    return backend


def check_stages(bench: Bench) -> str:
    """Every stage in fp32 follows a bare torch loop; in low precision it learns alike.

    fp32: sums in another order, 1e-6 a step and growing. 16 bits: a master's copy rounds to the
    neighbouring value now and then, which moves a loss by less than 1 %.
    """
    reference = BareLoop(
        config := build_config("tiny", [*TRAINING, "engine.precision=fp32"]),
        plan_of(config),
        bench.device,
        random_steps(config, plan_of(config)),
    )
    reference.run(STEPS)
    seen = []
    for precision in precisions(bench):
        worst = 0.0
        for stage in STAGES:
            setting = [f"engine.zero_stage={stage}", f"engine.precision={precision}"]
            setting.append("engine.loss_scale.initial_power=10")  # nothing to skip
            with open_trial(bench, setting) as trial:
                ours = losses(trial.steps(STEPS))
                worst = max(worst, furthest(ours, reference.losses))
        limit = 1e-4 if precision == "fp32" else 1e-2
        expect(worst < limit, f"{precision}: a loss is {worst:.1e} from the bare fp32 loop's")
        seen.append(f"{precision} {worst:.1e}")
    return "stages 0-3, furthest loss from a bare fp32 loop: " + ", ".join(seen)


def check_loss_scale(bench: Bench) -> str:
    """fp16: steps are skipped, the scale falls, the model then learns, the scale is resumed."""
    bench.need_gpu()
    seen = []
    for stage in STAGES:
        folder = bench.folder / f"stage-{stage}"
        setting = [f"engine.zero_stage={stage}", "engine.precision=fp16", OVERFLOWING]
        with open_trial(bench, setting) as trial:
            reports = trial.steps(60)
            skipped = sum(report.is_skipped for report in reports)
            scale = reports[-1].loss_scale
            expect(0 < skipped < 32, f"stage {stage}: {skipped} of 60 steps skipped")
            expect(scale < 2.0**32, f"stage {stage}: the scale stayed at {scale}")
            expect(not any(r.is_skipped for r in reports[40:]), f"stage {stage}: it goes on")
            first, last = reports[3].loss, reports[-1].loss  # of the same batch
            expect(last < 0.9 * first, f"stage {stage}: loss {first:.3f} → {last:.3f}")
            save(trial, folder, step=60)
            after = losses(trial.steps(3))
        with open_trial(bench, setting, first_step=60) as trial:
            restore(trial, folder)
            restored = trial.engine.loss_scale
            expect(restored == scale, f"stage {stage}: scale {scale} came back as {restored}")
            again = losses(trial.steps(3))
        expect(again == after, f"stage {stage}: {again} after resuming, {after} without")
        seen.append(f"{stage}: {skipped} skipped, 2^{int(math.log2(scale))}, loss {last:.2f}")
    return "stage " + "; ".join(seen)


def save(trial: Trial, folder, *, step: int) -> None:
    place = LocalPlace(folder)
    save_checkpoint(place, trial.engine, step=step, identity={}, ranks=Ranks())


def restore(trial: Trial, folder) -> None:
    manifest = find_sound(LocalPlace(folder), Ranks())
    expect(manifest is not None, f"{folder} holds no checkpoint")
    assert manifest is not None
    load_checkpoint(LocalPlace(folder), manifest, trial.engine)


def masters(trial: Trial) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint stores, whole, on the CPU: one rank holds all of it."""
    found: dict[str, torch.Tensor] = {}
    for fragment in held_fragments(trial.engine):
        for kind, view in fragment.tensors.items():
            found[f"{fragment.parameter}:{kind}"] = view.detach().cpu().clone().flatten()
    return found


def check_resume(bench: Bench) -> str:
    """A run saved and loaded goes on bit for bit as the one that was not interrupted."""
    seen = []
    for precision in precisions(bench):
        for stage in STAGES:
            folder = bench.folder / f"{precision}-{stage}"
            setting = [f"engine.zero_stage={stage}", f"engine.precision={precision}"]
            with open_trial(bench, setting) as trial:
                trial.steps(STEPS // 2)
                save(trial, folder, step=STEPS // 2)
                expected = losses(trial.steps(STEPS // 2))
                expected_state = masters(trial)
            with open_trial(bench, setting, first_step=STEPS // 2) as trial:
                restore(trial, folder)
                actual = losses(trial.steps(STEPS // 2))
                state = masters(trial)
            where = f"{precision}, stage {stage}"
            expect(actual == expected, f"{where}: losses {actual}, not {expected}")
            differing = [key for key in state if not torch.equal(state[key], expected_state[key])]
            expect(not differing, f"{where}: {len(differing)} tensors differ: {differing[:3]}")
        seen.append(precision)
    return f"stages 0-3 in {', '.join(seen)}: losses, weights and Adam's states are bit-equal"


def check_stage_change(bench: Bench) -> str:
    """A checkpoint of any stage loads into any other, bit for bit, and goes on as before."""
    worst = 0.0
    for writer in STAGES:
        folder = bench.folder / f"from-{writer}"
        with open_trial(bench, [f"engine.zero_stage={writer}"]) as trial:
            trial.steps(STEPS // 2)
            save(trial, folder, step=STEPS // 2)
            expected_state = masters(trial)
            expected = losses(trial.steps(STEPS // 2))
        for reader in STAGES:
            if reader == writer:
                continue
            setting = [f"engine.zero_stage={reader}"]
            with open_trial(bench, setting, first_step=STEPS // 2) as trial:
                restore(trial, folder)
                state = masters(trial)
                same = all(torch.equal(state[key], expected_state[key]) for key in expected_state)
                expect(same, f"stage {writer} → {reader}: a stored tensor changed")
                worst = max(worst, furthest(losses(trial.steps(STEPS // 2)), expected))
    expect(worst < 1e-3, f"a loss after the change is {worst:.1e} from the one without")
    return f"12 pairs in bf16; furthest loss after it {worst:.1e}"


OFFLOADS = {
    1: ("engine.zero_stage=1", "engine.offload_optimizer=true"),
    2: ("engine.zero_stage=2", "engine.offload_optimizer=true"),
    3: ("engine.zero_stage=3", "engine.offload_optimizer=true"),
    4: ("engine.zero_stage=3", "engine.offload_optimizer=true", "engine.offload_parameters=true"),
}


def check_offload(bench: Bench) -> str:
    """Optimizer, and parameters, in host memory: the same losses, resumed, in less memory."""
    # Wide enough that weights and states outweigh activations: 51M parameters.
    wide = "model={layers: 4, width: 1024, heads: 8, vocab_size: 512}"
    one = "batch={global_windows: 1, micro_windows: 1}"
    sizes = [] if bench.is_dry_run else [wide, one, "engine.optimizer.lr=0.0003"]
    seen = []
    for setting in OFFLOADS.values():
        stage = setting[0]
        results = []
        for chosen in ((stage,), setting):
            free_memory(bench)
            folder = bench.folder / "-".join(part.partition(".")[2] for part in chosen)
            with open_trial(bench, [*sizes, *chosen]) as trial:
                reports = trial.steps(STEPS // 2)
                memory = peak_memory_bytes(bench.device)
                save(trial, folder, step=STEPS // 2)
                reports += trial.steps(STEPS // 2)
            results.append((losses(reports), memory))
        with open_trial(bench, [*sizes, *setting], first_step=STEPS // 2) as trial:
            restore(trial, folder)
            again = losses(trial.steps(STEPS // 2))
        (plain, plain_memory), (offloaded, memory) = results
        name = ", ".join(part.removeprefix("engine.") for part in setting)
        off = furthest(offloaded, plain)
        # The CPU's AdamW rounds otherwise than the GPU's in the last place of fp32; a bf16 copy
        # then falls on its neighbour now and then.
        expect(off < 1e-3, f"{name}: a loss is {off:.1e} from that without offload")
        moved = furthest(again, offloaded[STEPS // 2 :])
        expect(moved == 0, f"{name}: a loss after resuming is off by {moved:.1e}")
        if bench.is_cuda:
            expect(memory < plain_memory, f"{name}: {gib(memory)}, without {gib(plain_memory)}")
        memories = f"{gib(memory)} instead of {gib(plain_memory)}, " if bench.is_cuda else ""
        seen.append(f"{name}: {memories}furthest loss {off:.0e}")
    return "\n".join(seen)


CHECKS = (
    Check(name="process group of one rank", run=check_group),
    Check(name="ZeRO 0-3 = bare loop", run=check_stages, limit_seconds=90),
    Check(name="fp16's dynamic loss scale", run=check_loss_scale, limit_seconds=90),
    Check(name="save and resume, bit for bit", run=check_resume, limit_seconds=90),
    Check(name="resume at another stage", run=check_stage_change, limit_seconds=90),
    Check(name="offload to host memory", run=check_offload, limit_seconds=90),
)
