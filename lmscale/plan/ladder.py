"""A ladder: small runs of a configuration's kind, from which the loss of the large one is foretold.

Pure: sizes, tokens, batches and learning rates of the rungs within a budget of FLOPs. From rung to
rung the width of heads stays, and layers grow as the width does; with muP, which carries a learning
rate from width to width, the layers stay and one rate serves all. Else the batch and the rate
follow the compute as C^0.3271 and C^-0.1250 (DeepSeek LLM, Bi et al. 2024, equation 1), and each
rung has several rates of which the best counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmscale.config import RunConfig
from lmscale.errors import ConfigError
from lmscale.plan.changes import change
from lmscale.plan.operations import list_operations, list_parameters
from lmscale.plan.parameters import count_parameters

BATCH_POWER, RATE_POWER = 0.3271, -0.1250  # DeepSeek LLM, equation 1
NUM_SIZES = 5
SPAN = 32  # the largest size over the smallest
TOKEN_SHARES = (0.5, 1.0, 2.0)  # of the large run's tokens a parameter
MOST_TOKENS = 100.0  # a parameter: what more of them bring, the law's other part tells
LARGEST_SHARE = 0.5  # of the large run's parameters
RATES = (0.5, 1.0, 2.0)  # times the rate that is expected to be good
MIN_STEPS, MIN_WINDOWS = 30, 8
UNIT = 16  # widths are multiples of it where heads leave the choice
MIN_WIDTH, MIN_LAYERS = 32, 2


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One small run."""

    parameters: int
    tokens: int
    flops: float
    rate: float
    values: dict[str, Any]
    """The settings by which it differs from the large run, as --set takes them."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The rungs, smallest first, and what they are for."""

    parameters: int
    tokens: int
    rungs: tuple[Rung, ...]

    @property
    def flops(self) -> float:
        return sum(rung.flops for rung in self.rungs)


def plan_ladder(
    config: RunConfig,
    *,
    budget_flops: float,
    sizes: Sequence[float] = (),
    tokens: Sequence[float] = (),
    rates: Sequence[float] | None = None,
) -> Ladder:
    """As large rungs as the budget allows, or those of ``sizes`` (parameters), each over every
    number of ``tokens``. ``rates``: factors of the learning rate to try. Raises ``ConfigError``.
    """
    shapes = _list_shapes(config)
    target = count(config)
    trained = config.trained_tokens
    factors = tuple(rates or ((1.0,) if _has_mup(config) else RATES))
    scale = _Scale(config=config, parameters=target, tokens=trained, factors=factors)
    if sizes:
        chosen = _nearest_shapes(shapes, sizes)
        rungs = _list_rungs(scale, chosen, tokens)
        needed = sum(rung.flops for rung in rungs)
        if needed > budget_flops:
            raise ConfigError(
                f"the {len(rungs)} runs of these sizes take {needed:.3g} FLOPs, more than the "
                f"{budget_flops:.3g} that may be used: name smaller sizes, fewer tokens or fewer "
                "learning rates"
            )
    else:
        rungs = _fit_budget(scale, shapes, tokens, budget_flops)
    found = {rung.parameters for rung in rungs}
    if len(found) < 3:
        raise ConfigError(
            f"a ladder needs three sizes, and {budget_flops:.3g} FLOPs allow {len(found)}: give "
            "more, or name sizes and tokens (--sizes, --tokens)"
        )
    return Ladder(parameters=target, tokens=trained, rungs=rungs)


def count(config: RunConfig) -> int:
    """Parameters of a configuration's model."""
    return count_parameters(list_parameters(config.model, config.sizes))


@dataclass(frozen=True, kw_only=True)
class _Scale:
    config: RunConfig
    parameters: int
    tokens: int
    factors: tuple[float, ...]


def _has_mup(config: RunConfig) -> bool:
    mup = getattr(config.model, "mup", None)
    return mup is not None and mup.base_width > 0


def _list_shapes(config: RunConfig) -> dict[int, dict[str, Any]]:
    """Parameters → the values of the model's section, of every smaller model and this one."""
    model = config.model
    if not hasattr(model, "width") or not hasattr(model, "layers"):
        raise ConfigError(
            f"model.family = {model.family!r} has no width and layers to make a ladder of"
        )
    if model.lora.rank or config.run.init_from:
        raise ConfigError(
            "a ladder is of runs that begin with random weights: this one has run.init_from or "
            "model.lora"
        )
    heads = getattr(model, "heads", None)
    width: int = model.width  # pyright: ignore[reportAttributeAccessIssue]
    head_width = getattr(model, "head_width", None) or (width // heads if heads else UNIT)
    widths = {*range(MIN_WIDTH, min(width, head_width), UNIT)}
    widths |= {*range(head_width, width + 1, head_width)}
    shapes = {}
    for smaller in sorted(widths):
        values = _shrink(config, smaller, head_width)
        try:
            shapes[count(change(config, values))] = values
        except ValueError:  # some part of the model allows no such width
            continue
    return shapes


def _shrink(config: RunConfig, width: int, head_width: int) -> dict[str, Any]:
    """The keys of the model's section for another width, all of them in every rung."""
    model = config.model.model_dump()
    share = width / model["width"]
    values: dict[str, Any] = {"width": width}
    if model.get("heads"):
        heads = max(1, width // head_width)
        values["heads"] = heads
        if model.get("kv_heads"):
            groups = model["heads"] // model["kv_heads"]
            values["kv_heads"] = max(n for n in _divisors(heads) if n <= max(1, heads // groups))
        if model.get("head_width"):
            values["head_width"] = min(head_width, width)
    if model.get("attention_width"):
        values["attention_width"] = model["attention_width"] * width // model["width"]
    if model.get("ffn_width"):
        values["ffn_width"] = max(8, 8 * round(model["ffn_width"] * share / 8))
    for key in ("layers", "decoder_layers"):
        if model.get(key):
            least = min(MIN_LAYERS, model[key])
            scaled = model[key] if _has_mup(config) else max(least, round(model[key] * share))
            values[key] = scaled
    return {f"model.{key}": value for key, value in values.items()}


def _divisors(number: int) -> Iterator[int]:
    return (each for each in range(1, number + 1) if number % each == 0)


def _nearest_shapes(
    shapes: dict[int, dict[str, Any]], sizes: Sequence[float]
) -> dict[int, dict[str, Any]]:
    chosen = (min(shapes, key=lambda each: abs(math.log(each / size))) for size in sizes)
    return {parameters: shapes[parameters] for parameters in sorted(set(chosen))}


def _fit_budget(
    scale: _Scale,
    shapes: dict[int, dict[str, Any]],
    tokens: Sequence[float],
    budget_flops: float,
) -> tuple[Rung, ...]:
    """The rungs below the largest size that leaves them all within the budget."""
    tops = sorted(each for each in shapes if each <= scale.parameters * LARGEST_SHARE)
    rungs: tuple[Rung, ...] = ()
    low, high = 0, len(tops)  # those below low fit, those from high on do not
    while low < high:
        middle = (low + high) // 2
        wanted = [tops[middle] / SPAN ** (n / (NUM_SIZES - 1)) for n in range(NUM_SIZES)]
        more = _list_rungs(scale, _nearest_shapes(shapes, wanted), tokens)
        if sum(rung.flops for rung in more) <= budget_flops:
            rungs, low = more, middle + 1
        else:
            high = middle
    return rungs


def _list_rungs(
    scale: _Scale, shapes: dict[int, dict[str, Any]], tokens: Sequence[float]
) -> tuple[Rung, ...]:
    per_parameter = min(MOST_TOKENS, scale.tokens / scale.parameters)
    fewest = MIN_STEPS * MIN_WINDOWS * scale.config.window.stride

    def usual(parameters: int) -> list[float]:
        return [
            max(fewest * share / TOKEN_SHARES[0], share * per_parameter * parameters)
            for share in TOKEN_SHARES
        ]

    return tuple(
        _plan_rung(scale, parameters, values, wanted, factor)
        for parameters, values in shapes.items()
        for wanted in (tokens or usual(parameters))
        for factor in scale.factors
    )


def _plan_rung(
    scale: _Scale, parameters: int, values: dict[str, Any], tokens: float, factor: float
) -> Rung:
    """One run. Its steps are whole, so that its tokens are about those that are wanted."""
    config = scale.config
    stride, batch = config.window.stride, config.batch.global_windows
    compute = parameters * tokens / (scale.parameters * scale.tokens)
    windows = batch
    rate = config.engine.optimizer.lr * factor
    if not _has_mup(config):
        windows = 8 * round(batch * compute**BATCH_POWER / 8)
        windows = min(batch, max(MIN_WINDOWS, windows))
        rate *= compute**RATE_POWER
    while windows > MIN_WINDOWS and tokens / (windows * stride) < MIN_STEPS:
        windows //= 2
    steps = max(1, round(tokens / (windows * stride)))
    smaller = change(config, values)
    trained = steps * windows * stride
    settings = {
        **values,
        "batch.global_windows": windows,
        "engine.optimizer.lr": float(f"{rate:.3g}"),
        **_shorten(config, steps),
    }
    return Rung(
        parameters=parameters,
        tokens=trained,
        flops=_flops_per_token(smaller) * trained,
        rate=settings["engine.optimizer.lr"],
        values=settings,
    )


def _shorten(config: RunConfig, steps: int) -> dict[str, Any]:
    """What a shorter run has in proportion, and what it does at its end alone."""
    schedule, share = config.engine.schedule, steps / config.train.steps
    warmup = min(steps // 2, max(1, steps // 100, round(schedule.warmup_steps * share)))
    decay = None if schedule.decay_steps is None else max(1, int(schedule.decay_steps * share))
    return {
        "engine.schedule.warmup_steps": warmup if schedule.warmup_steps else 0,
        "engine.schedule.decay_steps": decay,
        "train.steps": steps,
        "train.log_every_steps": max(1, min(config.train.log_every_steps, steps // 20)),
        "checkpoint.every_steps": steps,
        "checkpoint.keep_best": {},
        "evaluation.every_steps": 0,
        "evaluation.stop": {},
        "evaluation.tasks": [],
        "batch.warmup": [],
        "export.every_steps": 0,
    }


def _flops_per_token(config: RunConfig) -> float:
    """Of a token of the data, forward and backward."""
    operations = list_operations(config, micro_windows=1)
    return sum(operation.total_flops for operation in operations) / config.window.stride
