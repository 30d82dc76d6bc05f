"""The same model trained in several loops: lmscale's own, and bare ones to hold it against.

Every loop takes the same micro-batches from the same initial weights with the same learning rate,
so that, where the arithmetic is the same, the losses are the same too.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmscale.checkpoint.fragments import held_fragments, refresh_parameters
from lmscale.checkpoint.manifest import MASTER
from lmscale.config import BatchPlan, RunConfig
from lmscale.engine.engine import Engine
from lmscale.engine.optimizer import build_optimizer
from lmscale.engine.schedule import learning_rate
from lmscale.model.decoder import Decoder
from lmscale.model.family import build_model
from lmscale.model.initialize import declared_parameters
from lmscale.model.layout import mark_starts
from lmscale.objective.causal_scoring import build_targets
from lmscale.objective.objective import build_scoring
from lmscale.objective.scores import to_device
from lmscale.ranks.mesh import Mesh
from lmscale.stream.batches import Batch, StepBatch
from lmscale.train.initial import build_run_engine, draw_weights, fill_weights
from lmscale.train.loop import train_steps

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class TrainingLoop(ABC):
    """Steps on demand. ``losses`` holds the loss of every step done, nats per target."""

    name: str

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.losses: list[float] = []

    @abstractmethod
    def step(self) -> None:
        """One optimizer step, its loss read back to the host."""

    def run(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> float:
        """Seconds that so many steps take by ``clock``, the device idle before and after."""
        synchronize(self.device)
        started = clock()
        for _ in range(steps):
            self.step()
        synchronize(self.device)
        return clock() - started

    def close(self) -> None:
        """Give the device's memory back."""
        for name in list(vars(self)):
            delattr(self, name)


class LmscaleLoop(TrainingLoop):
    """``train_steps`` over ``build_run_engine``, which is what ``lmscale train`` runs."""

    name = "lmscale"

    def __init__(
        self,
        config: RunConfig,
        plan: BatchPlan,
        device: torch.device,
        batches: Iterator[StepBatch],
        *,
        weights_from_device: bool = False,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(device)
        self.engine = build_run_engine(
            config, plan, mesh or Mesh(), device, fill=not weights_from_device
        )
        if weights_from_device:
            draw_on_device(self.engine, config.model.init_std)
        self.reports = train_steps(self.engine, batches, config)

    def step(self) -> None:
        self.losses.append(next(self.reports).loss)

    def close(self) -> None:
        self.engine.deepspeed.destroy()
        super().close()


class BareLoop(TrainingLoop):
    """The same objective without DeepSpeed, with the arithmetic that lmscale asks of it.

    In bf16 the module holds bf16 parameters, nothing is autocast, and AdamW (torch's, fused)
    updates fp32 masters that are copied back after each step. Gradients of micro-batches are added
    up in fp32. In fp32 the parameters are the masters.
    """

    name = "bare torch loop"

    def __init__(
        self,
        config: RunConfig,
        plan: BatchPlan,
        device: torch.device,
        batches: Iterator[StepBatch],
        *,
        weights_from_device: bool = False,
    ) -> None:
        super().__init__(device)
        self.config, self.batches = config, batches
        model = build_bare_model(config, device, weights_from_device=weights_from_device)
        self.objective = build_scoring(model, config)
        named = dict(model.named_parameters())
        masters = named
        self.has_masters = config.engine.precision != "fp32"
        if self.has_masters:
            masters = {name: nn.Parameter(p.detach().clone()) for name, p in named.items()}
            self.objective.to(DTYPES[config.engine.precision])
        self.parameters, self.masters = list(named.values()), list(masters.values())
        self.optimizer = build_optimizer(
            masters, declared_parameters(model), config.engine.optimizer
        )

    def step(self) -> None:
        batch = next(self.batches)
        total = torch.zeros((), device=self.device)
        scale = 1 / batch.targets
        for micro in batch.micro_batches:
            scores = self.objective(**to_device(micro.arrays, self.device))
            (scores.loss.total * scale).backward()
            total += scores.figures["loss"].total
            if self.has_masters:
                self._add_to_masters()
        self._update()
        self.losses.append(float(total) * scale)

    @torch.no_grad()
    def _add_to_masters(self) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        sums = [master.grad for master in self.masters if master.grad is not None]
        if sums:
            torch._foreach_add_(sums, gradients)  # pyright: ignore - not in torch's __all__
        else:
            for master, gradient in zip(self.masters, gradients, strict=True):
                master.grad = gradient.float()
        for parameter in self.parameters:
            parameter.grad = None

    def _update(self) -> None:
        settings = self.config.engine
        if settings.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.masters, settings.optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                settings.schedule,
                peak=settings.optimizer.lr,
                step=len(self.losses) + 1,
                total_steps=self.config.train.steps,
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.has_masters:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)  # pyright: ignore


class AutocastLoop(BareLoop):
    """As such loops are usually written: fp32 weights under autocast, all logits at once.

    torch's autocast to bf16 wraps the forward pass, ``F.cross_entropy`` takes the whole [B·T, V]
    logits, gradients add up in the fp32 weights. The model and its masks are the same.
    """

    name = "autocast torch loop"

    def __init__(
        self, config: RunConfig, plan: BatchPlan, device: torch.device, batches: Iterator[StepBatch]
    ) -> None:
        is_low = config.engine.precision != "fp32"
        plain = config.model_dump()
        plain["engine"]["precision"] = "fp32"
        super().__init__(RunConfig.model_validate(plain), plan, device, batches)
        self.autocast = torch.autocast(device.type, torch.bfloat16) if is_low else nullcontext()

    def step(self) -> None:
        batch = next(self.batches)
        total = torch.zeros((), device=self.device)
        scale = 1 / batch.targets
        for micro in batch.micro_batches:
            with self.autocast:
                nll = self._nll(micro)
            (nll * scale).backward()
            total += nll.detach()
        self._update()
        self.losses.append(float(total) * scale)

    def _nll(self, micro: Batch) -> Tensor:
        arrays = to_device(micro.arrays, self.device)
        masked = self.config.stream.mask_documents
        ids = arrays["tokens"].long()
        begins = mark_starts(arrays["starts"], batch=ids.shape[0], length=ids.shape[1])
        labels = build_targets(ids, begins, arrays["lengths"], mask_documents=masked)
        model = self.objective.model
        layout = model.lay_out(begins[:, :-1], mask_documents=masked)
        logits = model.head(model(ids[:, :-1], layout))
        return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")


def build_bare_model(
    config: RunConfig, device: torch.device, *, weights_from_device: bool = False
) -> Decoder:
    """The configured model in fp32 with its initial weights, blocks compiled where configured."""
    with device:
        model = build_model(config.model, config.sizes)
    if weights_from_device:
        for name, parameter in model.named_parameters():
            _draw(name, parameter.data, config.model.init_std, is_matrix=parameter.ndim > 1)
    else:
        fill_weights(model, draw_weights(config.run.seed))
    if config.engine.compile:
        for block in model.blocks_to_compile():
            block.compile()
    return model


@torch.no_grad()
def draw_on_device(engine: Engine, std: float) -> None:
    """Other initial weights than ``fill`` draws, as good for timing: a billion numbers take the
    CPU half a minute.
    """
    is_matrix = {
        name: len(getattr(parameter, "ds_shape", parameter.shape)) > 1
        for name, parameter in engine.named_parameters()
    }
    for fragment in held_fragments(engine):
        name = fragment.parameter
        _draw(name, fragment.tensors[MASTER], std, is_matrix=is_matrix[name])
    refresh_parameters(engine)


def _draw(name: str, values: Tensor, std: float, *, is_matrix: bool) -> None:
    if is_matrix:
        values.normal_(0.0, std)
    else:
        values.fill_(0.0 if name.endswith("bias") else 1.0)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
