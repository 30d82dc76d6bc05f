"""The DeepSpeed engine behind a small surface: accumulate a step's gradient, then update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmscale.config.data import BatchPlan
from lmscale.config.training import EngineConfig
from lmscale.ranks.mesh import Mesh

MODEL_PREFIX = "model."  # what a scoring puts before the model's own parameter names


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one optimizer step did.

    Its figures stay on the device: reading them, together with the loss, waits for the step.
    """

    figures: Tensor  # f64 [2]: gradient_norm, is_skipped
    loss_scale: float  # 1 unless fp16

    @property
    def gradient_norm(self) -> float:
        """Global, before clipping; not finite when a gradient is not."""
        return float(self.figures[0])

    @property
    def is_skipped(self) -> bool:
        """A gradient was not finite, so the weights and the optimizer did not change."""
        return bool(self.figures[1])


def clip_gradients(
    deepspeed: Any, parameters: Iterable[torch.nn.Parameter], *, max_norm: float
) -> Tensor:
    """Scale the gradients down to ``max_norm`` (0: not at all), instead of the DeepSpeed engine.

    Returns the norm of all of them together before that, fp32 []. DeepSpeed 0.19.8 would take it
    again, sum it over the ranks, which all have the same, and copy two numbers from the host: each
    copy waits for the device (runtime/utils.py, clip_grad_norm_).
    """
    deepspeed.gradient_clipping = _never
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).float()
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _never() -> float:
    return 0.0


@contextmanager
def skipping(optimizer: Any, is_skipped: Tensor) -> Iterator[None]:
    """A block in which ``optimizer.step()`` changes nothing if ``is_skipped``, bool [], is true.

    torch's fused optimizers look at it on the device (``found_inf``, as for torch's GradScaler),
    Muon from the host.
    """
    optimizer.found_inf = is_skipped.float()
    try:
        yield
    finally:
        del optimizer.found_inf


def scalar(value: Tensor | float | None, device: torch.device) -> Tensor:
    """fp64 [] on the device, without waiting for it; None is NaN."""
    if isinstance(value, Tensor):
        return value.detach().to(device=device, dtype=torch.float64).reshape(())
    number = float("nan") if value is None else float(value)
    return torch.full((), number, dtype=torch.float64, device=device)


def whole_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """That of the whole parameter, also where ZeRO 3 has dealt it out."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model under DeepSpeed, whose own engine ``deepspeed`` is; only checkpoint/ looks inside."""

    deepspeed: Any
    config: EngineConfig
    plan: BatchPlan
    mesh: Mesh
    device: torch.device
    methods: Mapping[str, str] = field(default_factory=dict)
    """Trained parameter → what updates it: adamw, muon, …"""
    kept_elements: dict[str, dict[Tensor, Tensor]] = field(default_factory=dict)
    """Kept of every trained element besides, such as an average of the weights, and in checkpoints:
    kind → a master (masters.py) → a tensor of its shape."""
    before_update: list[Callable[[], None]] = field(default_factory=list)
    """What must have happened before the weights change the next time; each is called once."""

    @property
    def module(self) -> torch.nn.Module:
        return self.deepspeed.module

    def __call__(self, **inputs: Tensor) -> Any:
        """One forward pass, through DeepSpeed's hooks."""
        return self.deepspeed(**inputs)

    @property
    def forward_module(self) -> torch.nn.Module:
        """The same forward pass as a torch module."""
        return self.deepspeed

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model is in evaluation mode, without dropout, for the time of the block."""
        self.deepspeed.eval()
        try:
            yield
        finally:
            self.deepspeed.train()

    def close(self) -> None:
        """Give back what DeepSpeed holds; the engine is of no use any more."""
        self.deepspeed.destroy()

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The model's parameters by the names they have without the objective around it."""
        for name, parameter in self.module.named_parameters():
            yield name.removeprefix(MODEL_PREFIX), parameter

    def trained_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Those that are not frozen."""
        return (row for row in self.named_parameters() if row[1].requires_grad)

    def replicas(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters and buffers that every rank holds whole: at ZeRO 3 the small ones."""
        for name, parameter in self.named_parameters():
            dealt: Any = parameter if hasattr(parameter, "ds_id") else None
            if dealt is None or (dealt.ds_persist and dealt.ds_status.name == "AVAILABLE"):
                yield name, parameter.detach()
        for name, buffer in self.module.named_buffers():
            yield f"{name.removeprefix(MODEL_PREFIX)} (buffer)", buffer

    def counters(self) -> dict[str, int]:
        """DeepSpeed's counts, which are alike on all ranks."""
        return {
            "DeepSpeed's steps": int(self.deepspeed.global_steps),
            "DeepSpeed's skipped steps": int(self.deepspeed.skipped_steps),
        }

    def accumulate(
        self,
        losses: Iterable[Callable[[], Tensor]],
        *,
        targets: int,
        more_targets: Sequence[int] = (),
        micro_batches: int | None = None,
    ) -> None:
        """Add up the gradient of one step, of as many micro-batches; by default the plan's.

        Each element of ``losses``, called, runs one forward pass and returns its summed loss, f32
        []. The gradient is that of the sum over all micro-batches and ranks divided by
        ``targets``, the step's global target count: DeepSpeed averages over the replicas, hence
        the factor. A loss of several terms comes as f32 [terms], each of which is divided by its
        own count; one that no target counts for adds nothing.
        """
        scale: float | Tensor = self.mesh.replicas.size / max(targets, 1)
        if more_targets:
            counts = torch.tensor([targets, *more_targets], device=self.device)
            scale = self.mesh.replicas.size / counts.clamp(min=1)
        if self.config.zero_stage == 0 and self.config.precision != "fp32":
            # Where no micro-batch used a parameter, DeepSpeed 0.19.8 would make a gradient of the
            # parameter's dtype (engine.py, _get_gradients_for_reduction), which is not the sum's.
            for _, parameter in self.trained_parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        last = micro_batches or self.plan.accumulation
        for number, forward in enumerate(losses, start=1):
            # DeepSpeed's own count is of the largest step, and a warm-up's are smaller.
            self.deepspeed.set_gradient_accumulation_boundary(number == last)
            loss = (forward() * scale).sum()
            self.deepspeed.backward(loss, scale_wrt_gas=False)
            if number != last:
                self.deepspeed.step()  # counts the micro-batch; the last one is counted by update()

    def update(self, *, learning_rate: float) -> Update:
        """Clip, take one step of the optimizer, and clear the gradient."""
        self.release_weights()
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_ratio"]
            group["base_lr"] = learning_rate
        outer = self.deepspeed.optimizer
        skipped_before, scale_before = self.deepspeed.skipped_steps, self.loss_scale
        if isinstance(outer, torch.optim.Optimizer):
            # Stage 0 in fp32: torch's own optimizer, for which DeepSpeed has no norm, and skips no
            # step whose gradient is not finite. Its own optimizers ask the host for that in every
            # step, which waits there until the device has done the backward pass.
            parameters = [parameter for _, parameter in self.trained_parameters()]
            for parameter in parameters:
                if parameter.grad is None:
                    # No micro-batch used it. Several ranks have zeros there by DeepSpeed, and an
                    # optimizer goes on by its momentum then, instead of leaving it out.
                    parameter.grad = torch.zeros_like(parameter)
            max_norm = self.config.optimizer.clip_norm
            norm = clip_gradients(self.deepspeed, parameters, max_norm=max_norm)
            is_skipped = ~torch.isfinite(norm)
            with skipping(outer, is_skipped):
                self.deepspeed.step()
        else:
            self.deepspeed.step()
            self._clear_kept()
            norm = self.deepspeed.get_global_grad_norm()
            is_skipped = float(self.deepspeed.skipped_steps > skipped_before)
        unscaled = scalar(norm, self.device) / self._norm_scale(scale_before)
        return Update(
            figures=torch.stack([unscaled, scalar(is_skipped, self.device)]),
            loss_scale=self.loss_scale,
        )

    def release_weights(self) -> None:
        """Have done what must happen before the weights change, such as a save's copying."""
        while self.before_update:
            self.before_update.pop()()

    def _clear_kept(self) -> None:
        """Clear the gradients that DeepSpeed 0.19.8 leaves for the next step to overwrite: at ZeRO
        3 all (stage3.py, partition_grads), offloaded those of the masters, and of micro-batches
        (stage_1_and_2.py, async_accumulate_grad_in_cpu_via_gpu). Of a parameter that the next step,
        or its first micro-batch, does not use, the old one would be applied again.
        """
        outer = self.deepspeed.optimizer
        if self.config.zero_stage == 3:
            outer.grad_partitions_flat_buffer.zero_()
        if self.config.offload_optimizer:
            is_dealt = self.config.zero_stage == 3
            masters = (
                "fp32_partitioned_groups_flat" if is_dealt else "single_partition_of_fp32_groups"
            )
            kept = [master.grad for master in getattr(outer, masters) if master.grad is not None]
            for gradient in (*kept, *getattr(outer, "accumulated_grads_in_cpu", {}).values()):
                gradient.zero_()

    def discard_gradient(self) -> None:
        """Forget what was accumulated since the last update, if anything was."""
        outer = self.deepspeed.optimizer
        outer.zero_grad(set_to_none=True)
        self._clear_kept()
        # DeepSpeed 0.19.8 clears what follows in step() alone, and differently at each stage.
        if hasattr(outer, "micro_step_id"):
            outer.micro_step_id = 0 if self.config.zero_stage == 3 else -1
        for sums in ("averaged_gradients", "all_grad_tensors"):
            if hasattr(outer, sums):
                setattr(outer, sums, dict.fromkeys(getattr(outer, sums)))
        if hasattr(outer, "_offload_accumulated_param_ids"):
            outer._offload_accumulated_param_ids = set()
        if hasattr(outer, "reset_cpu_buffers"):
            outer.reset_cpu_buffers()

    def _norm_scale(self, scale_before: float) -> float:
        """What is left of the gradient's loss scale in the norm that DeepSpeed 0.19.8 gives.

        All of it at stage 0 (fp16/unfused_optimizer.py: "norm is in fact norm*scale"); at stage 3
        what one update of the scale changed, as it divides by the new one (stage3.py, step).
        """
        if self.config.zero_stage == 0:
            return scale_before
        return scale_before / self.loss_scale if self.config.zero_stage == 3 else 1.0

    @property
    def loss_scale(self) -> float:
        if self.config.precision != "fp16":
            return 1.0
        return float(self.deepspeed.optimizer.loss_scale)
