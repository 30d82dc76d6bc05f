"""A toy model under the real engine, for tests of checkpoints and optimizers; seen by ranks.

It has all that a checkpoint must carry: tied weights, a frozen block, buffers, and sizes that no
number of ranks divides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmscale.checkpoint.fragments import owned_fragments
from lmscale.config import plan_batches
from lmscale.config.training import EngineConfig
from lmscale.engine.build import build_engine, gathered, parameter_context
from lmscale.engine.engine import Engine
from lmscale.model.initialize import Declared, ParameterKind
from lmscale.ranks.collectives import gather_json, sum_float64
from lmscale.ranks.fingerprint import add_fingerprints, fingerprint
from lmscale.ranks.mesh import Axis, Mesh

CPU = torch.device("cpu")
VOCABULARY, WIDTH, HIDDEN, LENGTH = 23, 7, 13, 5
GLOBAL_WINDOWS = 16
LEARNING_RATE = 0.02
KINDS: dict[str, ParameterKind] = {
    "embedding": "embedding",
    "norm": "norm",
    "up": "linear",
    "down": "linear",
}
UP_PARTS = (4, 9)  # rows of the two matrices that ``up`` is, to Muon and Adafactor


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One way to train the toy."""

    world_size: int
    stage: int
    kind: str = "adamw"
    precision: str = "fp32"
    offload: str = ""  # "optimizer", or "both": also the parameters
    accumulation: int = 2

    @property
    def name(self) -> str:
        parts = [self.kind, self.precision, f"zero{self.stage}", f"ranks{self.world_size}"]
        parts += [f"offload-{self.offload}"] if self.offload else []
        return "-".join([*parts, f"accumulate{self.accumulation}"])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Toy(nn.Module):
    temperature: Tensor
    shift: Tensor

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        list(self.blocks)[1].requires_grad_(False)
        self.register_buffer("temperature", torch.rand(VOCABULARY) + 0.5)
        self.register_buffer("shift", torch.randint(1, VOCABULARY, (3,)))
        self.register_buffer("positions", torch.full((2,), float(seed)), persistent=False)

    def forward(self, ids):
        inputs, targets = ids[:, :-1], (ids[:, 1:] + self.shift[1]) % VOCABULARY
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x).float() * self.temperature
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def parts_of(name: str) -> tuple[int, ...]:
    return UP_PARTS if name.split(".")[-2] == "up" else ()


def kind_of(name: str) -> ParameterKind:
    if name.endswith("bias"):
        return "bias"
    return KINDS[name.split(".")[-2]]


@torch.no_grad()
def fill(toy: Toy, whole: Toy) -> None:
    for parameter, value in zip(toy.parameters(), whole.parameters(), strict=True):
        with gathered(parameter):
            parameter.copy_(value)
    for buffer, value in zip(toy.buffers(), whole.buffers(), strict=True):
        buffer.copy_(value)


def build(
    setup: Setup,
    *,
    seed: int,
    momentum: float = 0.9,
    thawed: bool = False,
    prune: Callable[[str, Tensor], Tensor] | None = None,
) -> Engine:
    """``prune``: (parameter's name, its whole value) → the value, whose zeros are to stay."""
    config = EngineConfig.model_validate(
        {
            "precision": setup.precision,
            "zero_stage": setup.stage,
            "offload_optimizer": bool(setup.offload),
            "offload_parameters": setup.offload == "both",
            "optimizer": {"kind": setup.kind, "momentum": momentum, "lr": LEARNING_RATE},
            "schedule": {"kind": "constant"},
            "keep_zeros": prune is not None,
        }
    )
    plan = plan_batches(
        global_windows=GLOBAL_WINDOWS,
        micro_windows=GLOBAL_WINDOWS // setup.world_size // setup.accumulation,
        data_ranks=setup.world_size,
    )
    with parameter_context(config, plan, CPU):
        toy = Toy(seed)
    if (setup.stage, setup.precision) == (3, "bf16"):
        fill(toy, Toy(seed))  # there the draws are of bf16
    for name, parameter in toy.named_parameters() if prune else ():
        with gathered(parameter), torch.no_grad():
            parameter.copy_(prune(name, parameter))
    if thawed:
        toy.requires_grad_(True)
    declared = {
        name: Declared(kind=kind_of(name), parts=parts_of(name))
        for name, _ in toy.named_parameters()
    }
    data = Axis(rank=dist.get_rank(), size=setup.world_size)
    return build_engine(toy, declared, config, plan=plan, mesh=Mesh(data=data), device=CPU)


def draw_windows(step: int) -> Tensor:
    """All ids of a step, [GLOBAL_WINDOWS, LENGTH + 1]."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randint(0, VOCABULARY, (GLOBAL_WINDOWS, LENGTH + 1), generator=generator)


def forwards(engine: Engine, step: int, seen: list[float]) -> Iterator[Callable[[], Tensor]]:
    """The micro-batches of a step, each its forward pass; what they lose is added to ``seen``."""
    windows = draw_windows(step)
    plan, rank = engine.plan, engine.mesh.data.rank
    for micro in range(plan.accumulation):
        first = (rank * plan.accumulation + micro) * plan.micro_windows

        def forward(first: int = first) -> Tensor:
            loss = engine(ids=windows[first : first + plan.micro_windows])
            seen.append(float(loss.detach()))
            return loss

        yield forward


def take_step(engine: Engine, step: int) -> list[float]:
    """The step's mean loss over all ranks, and the gradient's norm."""
    seen: list[float] = []
    targets = GLOBAL_WINDOWS * LENGTH
    engine.accumulate(forwards(engine, step, seen), targets=targets)
    norm = float(engine.update(learning_rate=LEARNING_RATE).gradient_norm)
    return [sum_float64([sum(seen)])[0] / targets, norm]


def accumulate_garbage(engine: Engine) -> None:
    """All but the last micro-batch of a step that never comes."""
    if engine.plan.accumulation > 1:
        garbage = list(forwards(engine, 77, []))[:-1]
        engine.accumulate(garbage, targets=1)


def content_of(engine: Engine) -> dict[str, int]:
    """Kind → hash of all that the ranks hold of it together: masters, states, frozen, buffers."""
    own: dict[str, int] = {}
    for fragment in owned_fragments(engine):
        for kind, view in fragment.tensors.items():
            part = fingerprint(view, name=fragment.parameter, offset=fragment.offset)
            own[kind] = add_fingerprints([own.get(kind, 0), part])
    of_ranks = gather_json(own)
    kinds = sorted({kind for of_rank in of_ranks for kind in of_rank})
    return {kind: add_fingerprints(r.get(kind, 0) for r in of_ranks) for kind in kinds}
