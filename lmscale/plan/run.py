"""A whole run: its days, what it costs, its checkpoints, and what failures make of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lmscale.config import RunConfig
from lmscale.plan.checkpoints import Checkpoint, plan_checkpoint
from lmscale.plan.devices import Machine, settle_precision
from lmscale.plan.failures import (
    DAY,
    HOUR,
    LLAMA_3,
    expect_wall_seconds,
    find_save_interval,
    find_widest_interval,
)
from lmscale.plan.losses import ExpectedLoss, expect_losses
from lmscale.plan.operations import list_parameters
from lmscale.plan.own_constants import Constants
from lmscale.plan.parameters import ParameterShape, count_parameters
from lmscale.plan.repetition import SourceUse, plan_sources, sum_up
from lmscale.plan.simulation import Course, Hazards, Simulated, simulate

# Touvron et al. 2023 (LLaMA, section 6) take 1.1, and the devices at their full power.
PUE = 1.1
# NVIDIA DGX SuperPOD with H100, reference architecture, "Storage": the standard guideline for a
# scalable unit of 32 nodes is 40 GB/s of reads and 20 GB/s of writes.
READ_BYTES_PER_SECOND, WRITE_BYTES_PER_SECOND = 40e9 / 32, 20e9 / 32  # a node
# A save also compares a hash of what the ranks hold alike, and drafts its manifest. No source;
# --like takes what a run has measured in its place (checkpoint/stopped_seconds).
HELD_SECONDS = 0.1
# From a device to pinned host memory: PCIe 4 with 16 lanes, of whose 31.5 GB/s copies reach about
# 25; on a CPU a core's own copy, no source.
COPY_BYTES_PER_SECOND, CPU_COPY_BYTES_PER_SECOND = 25e9, 5e9
# Jiang et al. 2024 (MegaScale, section 6.3): detecting and diagnosing a failure took less than ten
# minutes on average.
DOWN_SECONDS = 600.0
# Until the first step, without the checkpoint: imports, the process group, the loader. No source; a
# run's own figures say it better.
START_SECONDS = 120.0
# What an advised interval may cost over the best one, and the part of the time that it may write.
TOLERANCE, WRITING_SHARE = 0.002, 0.1
# What it may lose at most, where the best interval is shorter: few machines fail so seldom that the
# tolerance alone would allow days, but runs also end by mistakes that no published rate counts.
LONGEST_SECONDS = HOUR
MOST_FAILURES = 40_000  # that are simulated of a run, in all repetitions together
MOST_SAVES = 10_000  # that are simulated of a scale, be they over sooner
SCALES = tuple(2**power for power in range(15))  # 1 to 16,384 devices
SCALE_SECONDS = 30 * DAY


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a plan is told beside configuration and machine."""

    price: float | None = None
    """Of an hour of one device, in whatever currency."""
    pue: float = PUE
    """What a data centre draws over what its computers draw."""
    node_mtbf_seconds: float = LLAMA_3.node_mtbf_seconds
    preemption_seconds: float = math.inf
    limit_seconds: float = math.inf
    """Of a job."""
    queue_seconds: float = 0.0
    read_bytes_per_second: float | None = None
    """Of the storage, all nodes together."""
    write_bytes_per_second: float | None = None
    repetitions: int = 200
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Saves:
    """What a run's saves take, and how often they pay best."""

    checkpoint: Checkpoint
    held_seconds: float
    """In which the steps wait for a save."""
    commit_seconds: float
    """From there until it counts."""
    load_seconds: float
    mtbf_seconds: float
    """Of the whole job."""
    every_steps: int
    """As the configuration says."""
    best_steps: float
    """By Daly 2006; infinite where nothing fails."""
    advised_steps: float
    """The most that cost hardly more than the best, are no more than an hour's or the best, and
    leave the storage time for others.
    """
    needed_bytes_per_second: float
    """That the storage must take in for a save to be over before the next one."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A whole run."""

    steps: int
    tokens: int
    parameters: int
    ranks: int
    step_seconds: float
    training_seconds: float
    """Of all steps, if nothing else took time."""
    simulated: Simulated
    simulated_best: Simulated | None
    """With saves as often as is advised; None where that is the configuration's own, about."""
    device_hours: float
    """Of half of the repetitions, at most."""
    cost: float | None
    energy_kwh: float | None
    saves: Saves
    losses: tuple[ExpectedLoss, ...]
    """Of models that predict the next token; else none."""
    sources: tuple[SourceUse, ...]
    doubts: tuple[str, ...]

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters

    @property
    def days(self) -> float:
        """Until the end, failures included, in half of the repetitions."""
        return self.simulated.wall_seconds[1] / DAY


def plan_run(
    config: RunConfig,
    machine: Machine,
    *,
    step_seconds: float,
    options: RunOptions | None = None,
    constants: Constants | None = None,
) -> RunPlan:
    """``step_seconds``: of a step by ``plan_step``. ``constants``: what a run has measured of
    itself, which then counts before what is taken in general.
    """
    options, constants = options or RunOptions(), constants or Constants()
    config = settle_precision(config, machine.device)
    step_seconds = constants.step_seconds or step_seconds
    saves = plan_saves(config, machine, step_seconds=step_seconds, options=options, own=constants)
    course, hazards = _plan_course(config, saves, step_seconds, options, constants)

    def run(of: Course) -> Simulated:
        # A run of many failures is its own average.
        failures = of.work_seconds / hazards.mtbf_seconds
        repetitions = min(options.repetitions, max(10, int(MOST_FAILURES / (1 + failures))))
        return simulate(of, hazards, repetitions=repetitions, seed=options.seed)

    simulated, better = run(course), None
    if not 0.7 < saves.advised_steps / saves.every_steps < 1.4:
        advised = max(1, round(min(saves.advised_steps, config.train.steps)))
        better = run(replace(course, save_every_steps=advised))
    shapes = list_parameters(config.model, config.sizes)
    hours = simulated.wall_seconds[1] / HOUR * machine.ranks
    watts = machine.device.watts
    sources = plan_sources(config)
    tokens = config.trained_tokens
    plan = RunPlan(
        steps=config.train.steps,
        tokens=tokens,
        parameters=count_parameters(shapes),
        ranks=machine.ranks,
        step_seconds=step_seconds,
        training_seconds=course.work_seconds,
        simulated=simulated,
        simulated_best=better,
        device_hours=hours,
        cost=None if options.price is None else options.price * hours,
        energy_kwh=None if watts is None else hours * watts * options.pue / 1000,
        saves=saves,
        losses=_expect_losses(config, shapes, tokens, sources),
        sources=sources,
        doubts=(),
    )
    return replace(plan, doubts=tuple(_find_doubts(plan)))


def plan_saves(
    config: RunConfig,
    machine: Machine,
    *,
    step_seconds: float,
    options: RunOptions,
    own: Constants | None = None,
) -> Saves:
    """How long the saves of a job on this machine take."""
    own = own or Constants()
    checkpoint = plan_checkpoint(config, ranks=machine.ranks)
    share = checkpoint.bytes / machine.ranks
    copied = CPU_COPY_BYTES_PER_SECOND if machine.device.kind == "cpu" else COPY_BYTES_PER_SECOND
    write = options.write_bytes_per_second or WRITE_BYTES_PER_SECOND * machine.nodes
    read = options.read_bytes_per_second or READ_BYTES_PER_SECOND * machine.nodes
    written = checkpoint.bytes / write
    is_asynchronous = config.checkpoint.asynchronous
    held = HELD_SECONDS + share / copied + (0.0 if is_asynchronous else written)
    mtbf = own.mtbf_seconds or options.node_mtbf_seconds / machine.nodes
    held = held if own.save_seconds is None else own.save_seconds
    best = find_save_interval(save_seconds=held, mtbf_seconds=mtbf) / step_seconds
    every = config.checkpoint.every_steps
    commit = written if is_asynchronous else 0.0
    commit = commit if own.commit_seconds is None else own.commit_seconds
    load = checkpoint.bytes / read if own.load_seconds is None else own.load_seconds
    widest = find_widest_interval(save_seconds=held, mtbf_seconds=mtbf, tolerance=TOLERANCE)
    widest = min(widest, max(LONGEST_SECONDS, best * step_seconds))
    return Saves(
        checkpoint=checkpoint,
        held_seconds=held,
        commit_seconds=commit,
        load_seconds=load,
        mtbf_seconds=mtbf,
        every_steps=every,
        best_steps=best,
        advised_steps=max(1.0, widest / step_seconds, commit / WRITING_SHARE / step_seconds),
        needed_bytes_per_second=checkpoint.bytes / (every * step_seconds),
    )


def _plan_course(
    config: RunConfig,
    saves: Saves,
    step_seconds: float,
    options: RunOptions,
    own: Constants,
) -> tuple[Course, Hazards]:
    evaluation = own.evaluation_seconds or 0.0
    course = Course(
        steps=config.train.steps,
        step_seconds=step_seconds,
        save_every_steps=saves.every_steps,
        save_seconds=saves.held_seconds,
        commit_seconds=saves.commit_seconds,
        evaluate_every_steps=config.evaluation.every_steps if evaluation else 0,
        evaluation_seconds=evaluation,
    )
    hazards = Hazards(
        mtbf_seconds=saves.mtbf_seconds,
        preemption_seconds=options.preemption_seconds,
        limit_seconds=options.limit_seconds,
        detect_seconds=DOWN_SECONDS if own.down_seconds is None else own.down_seconds,
        queue_seconds=options.queue_seconds,
        start_seconds=START_SECONDS if own.start_seconds is None else own.start_seconds,
        load_seconds=saves.load_seconds,
    )
    return course, hazards


def has_law(config: RunConfig) -> bool:
    """Whether the published laws are of such a run: all of it learns, from random weights on, to
    predict the next token.
    """
    is_plain = config.objective.name == "causal" and not config.run.init_from
    return is_plain and not config.model.lora.rank


def _expect_losses(
    config: RunConfig,
    shapes: tuple[ParameterShape, ...],
    tokens: int,
    sources: tuple[SourceUse, ...],
) -> tuple[ExpectedLoss, ...]:
    if not has_law(config):
        return ()
    total = count_parameters(shapes)
    embedded = sum(shape.elements for shape in shapes if shape.kind in ("embedding", "head"))
    effective = sum_up(sources)["effective"] if sources else float(tokens)
    return expect_losses(
        parameters=total,
        non_embedding=max(1, total - embedded),
        tokens=tokens,
        effective_tokens=effective,
    )


def _find_doubts(plan: RunPlan) -> Iterator[str]:
    saves, found = plan.saves, plan.simulated
    if not found.is_finished:
        yield (
            "the run hardly gets on: its steps between two saves take "
            f"{saves.every_steps * plan.step_seconds / HOUR:.1f} h, and something fails every "
            f"{saves.mtbf_seconds / HOUR:.1f} h. Lower checkpoint.every_steps"
        )
    if plan.simulated_best is not None:
        gain = plan.simulated_best.goodput - found.goodput
        best = max(1, round(min(saves.advised_steps, plan.steps)))
        if gain > max(0.005, 3 * found.standard_error):
            yield (
                f"checkpoint.every_steps = {saves.every_steps}: with {best} the goodput is "
                f"{100 * plan.simulated_best.goodput:.1f} in place of {100 * found.goodput:.1f} % "
                "(Daly 2006)"
            )
    interval = saves.every_steps * plan.step_seconds
    if saves.commit_seconds > interval:
        yield (
            f"a save takes {saves.commit_seconds:.0f} s to write, and the next one is due after "
            f"{interval:.0f} s: the steps wait. Raise checkpoint.every_steps, or give it storage "
            f"that takes {saves.needed_bytes_per_second / 1e9:.2g} GB/s"
        )
    for source in plan.sources:
        yield from source.describe()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A job of so many devices over 30 days of training."""

    devices: int
    mtbf_seconds: float
    goodput: float
    """With saves as often, in seconds, as in the plan."""
    goodput_best: float
    """With saves as often as is advised there."""


def plan_scales(
    config: RunConfig,
    machine: Machine,
    *,
    step_seconds: float,
    options: RunOptions | None = None,
    scales: tuple[int, ...] = SCALES,
) -> tuple[Scale, ...]:
    """The goodput from one device to 16,384, where a step takes as long at every scale."""
    options = options or RunOptions()
    options = replace(options, repetitions=min(options.repetitions, 40))
    return tuple(_plan_scale(config, machine, devices, step_seconds, options) for devices in scales)


def _plan_scale(
    config: RunConfig, machine: Machine, devices: int, step_seconds: float, options: RunOptions
) -> Scale:
    per_node = min(devices, machine.devices_per_node)
    machine = replace(machine, nodes=max(1, devices // per_node), devices_per_node=per_node)
    saves = plan_saves(config, machine, step_seconds=step_seconds, options=options)
    course, hazards = _plan_course(config, saves, step_seconds, options, Constants())
    steps = max(1, round(SCALE_SECONDS / step_seconds))

    def run(every_steps: float) -> float:
        every = max(1, min(round(every_steps), steps))
        of = replace(course, steps=min(steps, every * MOST_SAVES), save_every_steps=every)
        if _never_ends(of, hazards):
            return 0.0
        return simulate(of, hazards, repetitions=options.repetitions, seed=options.seed).goodput

    return Scale(
        devices=machine.ranks,
        mtbf_seconds=saves.mtbf_seconds,
        goodput=run(saves.every_steps),
        goodput_best=run(min(saves.advised_steps, steps)),
    )


def _never_ends(course: Course, hazards: Hazards) -> bool:
    """Whether a run would take a hundred times its work, by the closed form."""
    wall = expect_wall_seconds(
        course.work_seconds,
        interval_seconds=min(course.save_every_steps, course.steps) * course.step_seconds,
        save_seconds=course.save_seconds,
        restart_seconds=hazards.start_seconds + hazards.load_seconds,
        mtbf_seconds=hazards.mtbf_seconds,
    )
    return wall > 100 * course.work_seconds
