"""How the demo goes on this machine: precision, ranks and threads, steps; measured beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from lmscale.config import RunConfig
from lmscale.errors import EXIT_FINISHED, ClusterError
from lmscale.files.jsonl import read_rows
from lmscale.files.printing import say
from lmscale.ranks.device import faster_precision, free_cores, product_rates

PROMISED_MINUTES = 8
MAX_SECONDS = 60.0 * (PROMISED_MINUTES - 1)  # of the whole demo; the rest is for what varies
MAX_LINE_SECONDS = 8.0  # between two lines of steps
MIN_STEPS = 20
PLANNED = (  # the settings that depend on the machine: a demo that goes on keeps them
    "engine.precision",
    "engine.schedule.warmup_steps",
    "engine.schedule.decay_steps",
    "train.steps",
    "train.log_every_steps",
    "checkpoint.every_steps",
    "evaluation.every_steps",
)
TRIAL_STEPS = 3  # of which the first is not counted: memory is allocated, kernels are chosen
# As long as so many starts of the trial take all starts that follow it: two of training, without
# what is kept of the first one, and of evaluate, generate and audit, which load less.
STARTS_TO_COME = 2
EVALUATION_STEPS = 45  # as long as so many steps take all its evaluations together
# By which as many cores do less in one rank of several threads than in several ranks.
THREADS_RATIO = 1.3


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the demo uses here."""

    precision: str
    ranks: tuple[int, int]  # before and after the stop
    threads: tuple[int, int] | None  # of each rank; None: a GPU trains
    described: str

    def environment(self, half: int) -> Mapping[str, str]:
        """What the ranks of a half are given, where nobody has set it."""
        if self.threads is None:
            return {}
        # A thread that waits for another one sleeps. Where it spins, as OpenMP's do by default,
        # it takes the core from the one it waits for as soon as something else runs here too.
        wanted = {"OMP_NUM_THREADS": str(self.threads[half]), "OMP_WAIT_POLICY": "passive"}
        return {name: value for name, value in wanted.items() if name not in os.environ}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a few steps took."""

    step_seconds: float  # a step's, with the ranks of the first half
    start_seconds: float  # everything beside the steps


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is trained, and how long all that follows the trial will take."""

    steps: int
    log_every_steps: int
    seconds: float


def plan_machine() -> Machine:
    """Measure the cores and the precisions of this machine; with a GPU that is not needed."""
    import torch

    if torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        # NCCL takes one rank per GPU, so with a single one only the stage can change.
        ranks = (1, 1) if torch.cuda.device_count() == 1 else (2, 1)
        precision = "bf16" if has_bf16 else "fp16"
        name = torch.cuda.get_device_name(0)
        return Machine(precision=precision, ranks=ranks, threads=None, described=name)
    return plan_cpu(free_cores(), product_rates())


def plan_cpu(cores: int, rates: Mapping[str, float]) -> Machine:
    """Ranks and threads for so many free cores, and the faster precision of ``rates``."""
    precision = faster_precision(rates)
    ranks = (2, 1)
    first, second = (max(1, cores // count) for count in ranks)
    free = "one core is free" if cores == 1 else f"{cores} cores are free"
    shared = ", which the two ranks of the first half share" if cores < ranks[0] else ""
    return Machine(
        precision=precision,
        ranks=ranks,
        threads=(first, second),
        described=(
            f"{free}{shared}: 2 ranks × {first} {_threads(first)}, then 1 rank × {second} "
            f"{_threads(second)}; {precision}, since matrix products do {rates['bf16']:,.1f} "
            f"GFLOP/s in bf16 and {rates['fp32']:,.1f} in fp32 on a core of this CPU"
        ),
    )


def _threads(count: int) -> str:
    return "thread" if count == 1 else "threads"


def try_steps(path: Path, machine: Machine) -> Trial:
    """Train a few steps in a folder that is removed again."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lmscale-demo-") as folder:
        settings = {
            "run.name": "trial",
            "run.folder": f"{folder}/run",
            "engine.precision": machine.precision,
            "engine.schedule": "{kind: constant}",
            "train.steps": TRIAL_STEPS,
            "train.log_every_steps": 1,
            "evaluation": "{}",
            "checkpoint.every_steps": TRIAL_STEPS,
        }
        words = ["launch", "local", str(path), "--nproc", str(machine.ranks[0])]
        words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        process = subprocess.run(
            [sys.executable, "-m", "lmscale", *words],
            env=os.environ | machine.environment(0),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if process.returncode != EXIT_FINISHED:
            say(f"{process.stdout}{process.stderr}", err=True)
            raise typer.Exit(process.returncode)
        seconds = [
            float(row["speed/step_seconds"])
            for row in read_rows(Path(folder) / "run" / "metrics.jsonl")
            if "speed/step_seconds" in row
        ]
    if len(seconds) != TRIAL_STEPS:
        raise ClusterError(f"the trial of {TRIAL_STEPS} steps has written {len(seconds)} rows.")
    return Trial(
        step_seconds=sum(seconds[1:]) / (TRIAL_STEPS - 1),
        start_seconds=max(0.0, time.monotonic() - began - sum(seconds)),
    )


def plan_steps(trial: Trial, machine: Machine, *, wanted: int, passed_seconds: float) -> Schedule:
    """As many of the wanted steps as fit, where ``passed_seconds`` of the demo are over."""
    ratio = 1.0 if machine.ranks[0] == machine.ranks[1] else THREADS_RATIO
    later = trial.step_seconds * ratio
    fixed = STARTS_TO_COME * trial.start_seconds + EVALUATION_STEPS * later
    mean = (trial.step_seconds + later) / 2
    fitting = int((MAX_SECONDS - passed_seconds - fixed) / mean)
    steps = max(min(MIN_STEPS, wanted), min(wanted, fitting))
    every = max(1, min(10, int(MAX_LINE_SECONDS / later)))
    return Schedule(steps=steps, log_every_steps=every, seconds=fixed + steps * mean)


def plan_overrides(config: RunConfig, machine: Machine, schedule: Schedule) -> dict[str, object]:
    """The settings of the run that differ from the file's; a shorter run has all in proportion."""
    share = schedule.steps / config.train.steps
    settings: dict[str, object] = {
        "engine.precision": machine.precision,
        "train.log_every_steps": schedule.log_every_steps,
    }
    if share == 1:
        return settings
    rates, evaluation = config.engine.schedule, config.evaluation
    settings |= {
        "train.steps": schedule.steps,
        "engine.schedule.warmup_steps": int(rates.warmup_steps * share),
        "checkpoint.every_steps": max(1, int(config.checkpoint.every_steps * share)),
        "evaluation.every_steps": max(1, int(evaluation.every_steps * share)),
    }
    if rates.decay_steps is not None:
        settings["engine.schedule.decay_steps"] = max(1, int(rates.decay_steps * share))
    return settings
