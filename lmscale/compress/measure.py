"""Size, speed and held-out loss of several models, measured beside each other.

Speeds are of this machine as it is now: the models take turns, round by round, and of each the
median counts, so that what else the machine does weighs on all of them alike. They are compared
within one engine: a run's model runs under torch, a GGUF file under llama.cpp.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lmscale.config import RunConfig
from lmscale.evaluation.perplexity import SetScore, evaluate_set, plan_evaluation
from lmscale.model.family import CrossModel, Model
from lmscale.objective.objective import build_scoring
from lmscale.objective.scores import to_device
from lmscale.ranks.mesh import Axis
from lmscale.stream.batches import reads_partners
from lmscale.stream.dataset import Dataset
from lmscale.tokenizer.base import Tokenizer

Engine = Literal["torch", "llama.cpp"]
ROUNDS = 5
PIECE_SECONDS = 0.3  # of a model in a round, at least
PROMPT_TOKENS, NEW_TOKENS = 64, 64
ALONE = Axis(rank=0, size=1)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model to be measured."""

    name: str
    config: RunConfig  # of this model; its evaluation.sets are not asked
    tokenizer: Tokenizer
    model: Model  # with the weights that count for the loss, in eval mode
    dtype: str  # of the weights where they are kept
    bytes: int  # that the weights take there
    engine: Engine = "torch"
    speeds: Speeds | None = None  # known already


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Tokens a second, medians; None: the model does not do it."""

    scoring: float | None
    generating: float | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found of one model."""

    name: str
    parameters: int
    zeros: int
    """Of the parameters."""
    dtype: str
    bytes: int
    engine: Engine
    speeds: Speeds
    sets: Mapping[str, SetScore] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For programs; speeds in tokens a second."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "zeros": self.zeros,
            "dtype": self.dtype,
            "bytes": self.bytes,
            "engine": self.engine,
            "scoring_tokens_per_second": self.speeds.scoring,
            "generating_tokens_per_second": self.speeds.generating,
            "sets": {name: score.to_dict() for name, score in self.sets.items()},
        }


Bar = Callable[..., Any]  # as ``files.progress.progress``


def measure(
    contenders: Sequence[Contender],
    datasets: Mapping[str, Dataset],
    *,
    max_windows: int | None,
    bar: Bar,
) -> list[Measured]:
    """Every contender on every set, and their speeds in turns."""
    losses = [_score(each, datasets, max_windows, bar) for each in contenders]
    timed = [each for each in contenders if each.speeds is None]
    with bar("measuring speeds", ROUNDS, "rounds") as advance:
        speeds = iter(measure_speeds(timed, next(iter(datasets.values())), advance=advance))
    return [
        Measured(
            name=each.name,
            parameters=sum(p.numel() for p in each.model.parameters()),
            zeros=count_zeros(each.model),
            dtype=each.dtype,
            bytes=each.bytes,
            engine=each.engine,
            speeds=each.speeds or next(speeds),
            sets=sets,
        )
        for each, sets in zip(contenders, losses, strict=True)
    ]


def count_zeros(model: Model) -> int:
    return sum(int((parameter == 0).sum()) for parameter in model.parameters())


def _score(
    each: Contender, datasets: Mapping[str, Dataset], max_windows: int | None, bar: Bar
) -> dict[str, SetScore]:
    plan = plan_evaluation(each.config, each.tokenizer, max_windows=max_windows, max_mistakes=0)
    scoring, scores = build_scoring(each.model, each.config), {}
    for name, dataset in datasets.items():
        total = len(plan.window_numbers(dataset))
        with bar(f"{each.name} on {name}", total, "windows") as advance:
            scores[name] = evaluate_set(
                scoring, dataset, plan, data=ALONE, device=each.model.device, advance=advance
            )
    return scores


Work = Callable[[], int]  # does a piece of work; how many tokens it was of


@torch.no_grad()
def measure_speeds(
    contenders: Sequence[Contender],
    dataset: Dataset,
    *,
    advance: Callable[[float], None] = lambda rounds: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Speeds]:
    """Of each, on windows of a set that all of them read."""
    scoring = [_plan_scoring(each, dataset) for each in contenders]
    generating = [_plan_generating(each, dataset) for each in contenders]
    works = [*scoring, *generating]
    medians = take_turns(works, advance=advance, clock=clock) if works else []
    half = len(contenders)
    return [
        Speeds(scoring=score, generating=write)
        for score, write in zip(medians[:half], medians[half:], strict=True)
    ]


def take_turns(
    works: Sequence[Work | None],
    *,
    rounds: int = ROUNDS,
    advance: Callable[[float], None] = lambda rounds: None,
    clock: Callable[[], float] = time.perf_counter,
    piece_seconds: float = PIECE_SECONDS,
) -> list[float | None]:
    """Tokens a second of each work, the median of rounds in which they take turns; None of None.

    Each is done once before, which says how often it is done in a round.
    """
    repeats = [0] * len(works)
    for number, work in enumerate(works):
        if work is not None:
            work()
            repeats[number] = max(1, math.ceil(piece_seconds / max(_time(work, 1, clock)[1], 1e-9)))
    found: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for number, work in enumerate(works):
            if work is not None:
                tokens, seconds = _time(work, repeats[number], clock)
                found[number].append(tokens / seconds)
        advance(1)
    return [statistics.median(rates) if rates else None for rates in found]


def _time(work: Work, repeats: int, clock: Callable[[], float]) -> tuple[int, float]:
    began = clock()
    tokens = sum(work() for _ in range(repeats))
    return tokens, max(clock() - began, 1e-9)


def _plan_scoring(each: Contender, dataset: Dataset) -> Work:
    """A micro-batch of held-out windows: forward pass and loss."""
    plan = plan_evaluation(each.config, each.tokenizer, max_windows=each.config.batch.micro_windows)
    numbers = [*plan.window_numbers(dataset)]
    rows = dataset.read(numbers, partners=reads_partners(plan.preparation))
    arrays = to_device(plan.preparation.prepare(rows).arrays, each.model.device)
    scoring, tokens = build_scoring(each.model, each.config).eval(), int(rows.lengths.sum())

    def work() -> int:
        with torch.no_grad():
            _wait(scoring(**arrays).terms())
        return tokens

    return work


def _plan_generating(each: Contender, dataset: Dataset) -> Work | None:
    """Greedy tokens behind a prompt, one after the other, with what the model keeps of the former;
    nothing ends them before ``NEW_TOKENS``. Of the time the prompt's part is little.
    """
    model = each.model
    if isinstance(model, CrossModel) or not model.generates(sees_prompt_whole=False):
        return None
    length = min(PROMPT_TOKENS, model.max_positions // 2)
    prompt = first_prompt(each.config, dataset, length)
    ids = torch.tensor([prompt], device=model.device)
    count = min(NEW_TOKENS, model.max_positions - len(prompt))

    def work() -> int:
        with torch.no_grad():
            state = model.build_state(batch=1, capacity=len(prompt) + count)
            token = model.head(model.extend(ids, state)[:, -1]).argmax(-1, keepdim=True)
            for _ in range(count - 1):
                token = model.head(model.extend(token, state)[:, -1]).argmax(-1, keepdim=True)
            _wait(token)
        return count

    return work


def first_prompt(config: RunConfig, dataset: Dataset, length: int) -> list[int]:
    """The first tokens of the set's first window that are of the vocabulary."""
    rows = dataset.read([0])
    ids = rows.tokens[0][: int(rows.lengths[0])][:length].tolist()
    return [token for token in ids if token < config.vocab_size] or [0]


def _wait(result: Tensor) -> None:
    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)


def ratios(rows: Sequence[Measured]) -> Iterator[tuple[float | None, float | None]]:
    """Of each row its speeds by those of the first row of its engine."""
    first: dict[str, Speeds] = {}
    for row in rows:
        base = first.setdefault(row.engine, row.speeds)
        yield (
            _divide(row.speeds.scoring, base.scoring),
            _divide(row.speeds.generating, base.generating),
        )


def _divide(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other
