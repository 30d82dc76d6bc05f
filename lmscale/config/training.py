"""Sections that say how it is trained, watched and judged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from lmscale.config.base import Place, Section

# Of a running average. Optimizers divide by 1 - decay, which in fp32 has to differ from 0.
Decay = Annotated[float, Field(ge=0, le=0.999999)]
MAX_SECONDS = 2_000_000.0  # 23 days: in milliseconds they fit into 31 bits, as some waits want
FIGURES = ("loss", "perplexity", "bits_per_byte")  # of an evaluation set
AVERAGE = "average"  # of the weights over the steps: a kind in checkpoints, and a choice
ZEROS = "zeros"  # a kind in checkpoints: bool, true of an element that stays 0
Weights = Literal["trained", "average"]
Direction = Literal["min", "max"]
# Held-out figures that are better the higher they are; all others are better the lower they are.
RISING = frozenset({"accuracy", "next_accuracy", "order_accuracy"}) | {
    "f1_macro", "f1_micro", "f1_weighted", "f1_entities", "f1", "exact_match",
}  # fmt: skip


def is_task_place(word: str) -> bool:
    """Whether a word of ``evaluation.tasks`` is a folder or a file of tasks, not a name."""
    return "/" in word or word.endswith(".yaml") or Path(word).is_dir()


def direction_of(metric: str) -> Direction:
    """Where a figure, ``evaluation/SET/FIGURE``, goes as a model gets better."""
    return "max" if metric.split("/", 2)[-1] in RISING else "min"


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter 2019), Adafactor (Shazeer and Stern 2018), Adam (Kingma and Ba
    2015), Lion (Chen et al. 2023), Muon
    (Jordan et al. 2024), schedule-free AdamW (Defazio et al. 2024) or SGD with momentum.
    """

    kind: Literal["adamw", "adafactor", "adam", "lion", "muon", "schedule_free", "sgd"] = "adamw"
    """``adam`` adds ``weight_decay`` times the weights to the gradient (L2), as ``sgd`` does; the
    others shrink the weights themselves. ``lion`` moves every element by ``lr``: give it a third or
    a tenth of AdamW's, three or ten times its ``weight_decay``, and betas of 0.9 and 0.99.
    ``muon``: the matrices of the blocks by Muon, everything else by AdamW. Muon's updates are
    scaled to the size of AdamW's (Liu et al. 2025), so that both take the same ``lr`` and
    ``weight_decay``. ``adafactor`` keeps one number a row and a column in place of two an element,
    no momentum, and goes by ``lr`` times a matrix's own root mean square: give it 0.01, say. To
    both, queries, keys, values, gate and up are a matrix each, though stored together.
    ``schedule_free``: AdamW that averages what it steps through in place of a decay of the learning
    rate, so with ``engine.schedule.kind: constant``; held-out figures are of the average, which
    takes no memory of its own, and ``betas`` are fixed over the run.
    """
    lr: float = Field(default=3e-4, gt=0, le=1000)
    """Peak learning rate; the schedule scales it, and ``model.mup`` that of matrices."""
    momentum: Decay = 0.95
    """Of muon and sgd."""
    muon_lr_ratio: float = Field(default=1.0, gt=0, le=1e6)
    """Learning rate of Muon's matrices, relative to ``lr``."""
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.95), strict=False)
    eps: float = Field(default=1e-8, ge=1e-30, le=1)  # in fp32 a smaller one is 0, and 0 / 0 NaN
    weight_decay: float = Field(default=0.1, ge=0, le=1000)
    decay: tuple[Literal["linear", "embedding", "norm", "bias"], ...] = Field(
        default=("linear", "embedding"), strict=False
    )
    """Kinds of parameters that are decayed."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Global gradient norm above which gradients are scaled down; 0 never clips."""

    def method_of(self, kind: str) -> str:
        """Which of them takes a parameter of a kind (``linear``, ``embedding``, …): Muon leaves all
        but the matrices of the blocks to AdamW, a head too, whose rows are tokens.
        """
        return self.kind if self.kind != "muon" or kind == "linear" else "adamw"

    def element_states(self, method: str) -> tuple[str, ...]:
        """The states that a method keeps of every element, f32, in torch's names."""
        if method in ("adamw", "adam"):
            return ("exp_avg", "exp_avg_sq")
        if method == "lion":
            return ("exp_avg",)
        if method == "schedule_free":
            return ("z", "exp_avg_sq")
        if method == "adafactor" or (method == "sgd" and self.momentum == 0):
            return ()
        return ("momentum_buffer",)


class ScheduleConfig(Section):
    """The learning rate as a pure function of the step."""

    kind: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """``wsd``: warm-up, stable, decay (Hu et al. 2024, MiniCPM)."""
    warmup_steps: NonNegativeInt = 0
    decay_steps: PositiveInt | None = None
    """Steps of the decay; default: all after the warm-up, for wsd a tenth of the run."""
    final_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, relative to the peak."""

    def find_problem(self, *, total_steps: int) -> str | None:
        """Why a run of ``total_steps`` would not follow this schedule to its end, or None."""
        if self.warmup_steps > total_steps:
            return (
                f"engine.schedule.warmup_steps = {self.warmup_steps} is more than train.steps = "
                f"{total_steps}"
            )
        left = total_steps - self.warmup_steps
        if self.kind == "constant" or self.decay_steps is None or self.decay_steps <= left:
            return None
        return (
            f"engine.schedule.decay_steps = {self.decay_steps} is more than the {left} steps that "
            f"train.steps = {total_steps} leaves after warmup_steps = {self.warmup_steps}, so "
            f"{self.kind} would never reach final_ratio; lower decay_steps or leave it out"
        )


class LossScaleConfig(Section):
    """Dynamic loss scaling; fp16 only."""

    initial_power: NonNegativeInt = Field(default=16, le=60)
    window: PositiveInt = 1000
    """Steps without overflow before the scale doubles."""
    hysteresis: PositiveInt = 2
    minimum: PositiveInt = 1

    def find_problems(self) -> Iterator[str]:
        if self.minimum > 2**self.initial_power:
            yield (
                f"minimum = {self.minimum} is more than the scale begins with, 2^initial_power = "
                f"{2**self.initial_power}"
            )


class EngineConfig(Section):
    """DeepSpeed: precision, ZeRO, optimizer, schedule."""

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Of the weights in the forward and the backward pass; masters and sums are fp32. ``auto``:
    bf16 where the devices of all ranks compute in it, else fp32. It is settled when a run begins,
    told, and kept in its config.yaml, also where it goes on elsewhere.
    """
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload_optimizer: bool = False
    """Master weights and optimizer states in host memory, updated by the CPU. ZeRO 1 to 3."""
    offload_parameters: bool = False
    """Parameters in host memory between uses. ZeRO 3."""
    compile: bool = False
    """torch.compile every block before DeepSpeed wraps the model."""
    activation_memory_budget: float = Field(default=1.0, ge=0, le=1)
    """With ``compile``: the part of a block's activations that is kept, between all that its
    backward pass wants (1) and its inputs alone (0). torch chooses what is cheapest to recompute.
    """
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: Decay = 0.0
    """Keeps an average of the weights over the steps, such as 0.999: of that the average keeps this
    part at every step, and less at first, (1 + step) / (10 + step). It takes 4 bytes a parameter of
    memory and checkpoints, dealt to the ranks as the optimizer's states are. A run that goes on
    from a checkpoint without one begins it with the weights. 0: none.
    """
    keep_zeros: bool = False
    """Elements of matrices that are 0 when the run begins stay exactly 0, as retraining what
    `lmscale prune` has made wants. Which ones is kept beside the weights and in checkpoints, 1 byte
    a parameter. Their gradients change nothing, but count in the gradient's norm.
    """
    schedule: ScheduleConfig = ScheduleConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Single DeepSpeed keys to override, such as ``{zero_optimization: {overlap_comm: true}}``.
    ``lmscale config show`` prints the result.
    """

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _stage_is_a_number(cls, stage: Any) -> Any:
        if isinstance(stage, bool):  # which Python holds equal to 0 or 1
            raise ValueError(f"give a number from 0 to 3, not {str(stage).lower()}")
        return stage

    @property
    def has_average(self) -> bool:
        """Whether there is an average of the weights beside them."""
        return bool(self.ema_decay) or self.optimizer.kind == "schedule_free"

    def find_problems(self) -> Iterator[str]:
        if self.optimizer.kind == "schedule_free":
            if self.schedule.kind != "constant":
                yield (
                    f"schedule.kind = {self.schedule.kind}, but optimizer.kind = schedule_free "
                    "averages instead of decaying the learning rate: set it to constant, with "
                    "warmup_steps as they are"
                )
            if self.optimizer.betas[0] == 0:
                yield (
                    "optimizer.betas begin with 0, where schedule_free would never use its "
                    "average; give 0.9, say"
                )
            if self.ema_decay:
                yield (
                    f"ema_decay = {self.ema_decay:g}, but optimizer.kind = schedule_free has an "
                    "average of its own, and only one can be scored: leave ema_decay out"
                )
        if self.activation_memory_budget < 1 and not self.compile:
            yield (
                f"activation_memory_budget = {self.activation_memory_budget:g} is for compiled "
                "blocks: set compile: true, or recompute whole ones by "
                "model.activation_checkpoint_every"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            yield "offload_optimizer needs zero_stage 1, 2 or 3"
        if self.offload_parameters and self.zero_stage != 3:
            yield f"offload_parameters needs zero_stage 3, not {self.zero_stage}"


class TrainConfig(Section):
    """The loop."""

    steps: PositiveInt = 10_000
    """Optimizer steps of the whole run, restarts included."""
    freeze: tuple[str, ...] = Field(default=(), strict=False)
    """Parameters that stay as they begin, by patterns of their names, such as ["embedding.*",
    "blocks.0.*"]. Checkpoints hold them, and `lmscale checkpoint show` counts them.
    """
    log_every_steps: PositiveInt = 10
    """How often the terminal, TensorBoard and metrics.jsonl get a line; the ledger: every step."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak dense TFLOP/s of a device in this precision, for MFU; default: by the device's name."""


class WatchConfig(Section):
    """Signs of life of every rank, and what happens when they stop. 0 switches a thing off."""

    heartbeat_seconds: float = Field(default=5.0, ge=0, le=MAX_SECONDS)
    """How often a rank writes where it is. Beyond 250 ranks less often, so that no more than 50
    files a second are written. 0: no heartbeats, nobody watches, and a rank waits for the others
    for up to a day.
    """
    report_seconds: float = Field(default=60.0, ge=0, le=MAX_SECONDS)
    """When no rank has moved for so long, the log names who holds them up; all dump stacks."""
    limit_seconds: float = Field(default=600.0, ge=0, le=MAX_SECONDS)
    """When no rank has moved for so long, all of them end with exit code 1."""
    start_limit_seconds: float = Field(default=3600.0, ge=0, le=MAX_SECONDS)
    """The same until the first step is done: loading and compiling may take long. The report is
    later in proportion. 0: a start is not watched.
    """
    straggler_ratio: float = Field(default=1.5, ge=0)
    """A rank whose own work of a step (forward passes, wait for data) takes so many times that of
    the median rank is named.
    """
    straggler_steps: PositiveInt = 20
    """Number of recent steps over which ``straggler_ratio`` compares medians."""

    def find_problems(self) -> Iterator[str]:
        if 0 < self.limit_seconds < self.report_seconds:
            yield (
                f"limit_seconds = {self.limit_seconds:g} is below report_seconds = "
                f"{self.report_seconds:g}: the run would end before it is said why"
            )
        if 0 < self.report_seconds < 3 * self.heartbeat_seconds:
            yield (
                f"report_seconds = {self.report_seconds:g} is below 3 × heartbeat_seconds = "
                f"{3 * self.heartbeat_seconds:g}: a late heartbeat would look like a hang"
            )
        if 0 < self.straggler_ratio <= 1:
            yield (
                f"straggler_ratio = {self.straggler_ratio:g} would name ranks that are as fast as "
                "the others; give more than 1, or 0 to name none"
            )


class EarlyStopConfig(Section):
    """The end of a run before ``train.steps``, once a held-out figure gets no better."""

    metric: str = ""
    """Such as ``evaluation/heldout/loss``, as metrics.jsonl names it; empty: all steps are done."""
    patience: PositiveInt = 3
    """Evaluations in a row that may be no better than the best one before the run ends."""
    min_delta: float = Field(default=0.0, ge=0)
    """What a figure must be better by to count as better."""
    mode: Direction | None = None
    """``min`` or ``max``, whichever is better; default: ``max`` of accuracies, F1 and exact
    matches, else ``min``.
    """

    @property
    def direction(self) -> Direction:
        return self.mode or direction_of(self.metric)


class EvaluationConfig(Section):
    """Held-out loss in the loop and by ``lmscale evaluate``."""

    sets: dict[str, Place] = Field(default_factory=dict)
    """Name → folder or URL of shards."""
    every_steps: NonNegativeInt = 0
    """0 evaluates only after the last step. Else the last step has an evaluation of these as well,
    if ``at_end``, whether or not it is one of them.
    """
    max_windows: PositiveInt | None = None
    """Most windows per set in the loop, spread evenly over it; default, and at the end: all."""
    at_end: bool = True
    """Whether the whole sets are scored after the last step: ``final/SET/…`` in metrics.jsonl,
    beside the loop's ``evaluation/SET/…``.
    """
    only_at_end: tuple[str, ...] = Field(default=(), strict=False)
    """Sets that are scored after the last step, if ``at_end``, and no sooner, such as a test set:
    nothing can be decided by their figures.
    """
    stop: EarlyStopConfig = EarlyStopConfig()
    tasks: tuple[Place, ...] = Field(default=(), strict=False)
    """Of lm-evaluation-harness: names, and folders or files of tasks. They need the extra
    ``lm-eval``, on rank 0 alone.
    """
    tasks_every_steps: NonNegativeInt = 0
    """0 scores them only after the last step, if ``at_end``."""
    tasks_limit: PositiveInt | None = None
    """At most so many documents of each task, the first ones; default: all."""
    tasks_include_path: Place = ""
    """A folder of tasks that ``tasks`` may name beside lm-eval's own."""
    weights: Weights | None = None
    """``trained``, or ``average``: which weights held-out figures and generated text are of.
    Default: the average where the run keeps one (``engine.ema_decay``, ``schedule_free``).
    """

    def find_problems(self) -> Iterator[str]:
        bad = [name for name in self.sets if not name.replace("-", "").replace("_", "").isalnum()]
        if bad:
            yield (
                f"set names become folder and metric names: use letters, digits, - and _, not {bad}"
            )
        if unknown := [name for name in self.only_at_end if name not in self.sets]:
            yield f"only_at_end: {', '.join(unknown)}: no set of this name is in sets"
        if self.tasks_every_steps and not self.tasks:
            yield "tasks_every_steps needs tasks, by name or by folder"

    @property
    def of_loop(self) -> tuple[str, ...]:
        """The sets that are scored while the run trains."""
        return tuple(name for name in self.sets if name not in self.only_at_end)
