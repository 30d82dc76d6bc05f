"""A step whose gradient is not finite changes nothing, in the optimizer that skips none by itself.

DeepSpeed 0.19.8 skips such a step in each of its own optimizers, and each asks the host for it once
a step or more: the step waits there until the device has done the backward pass. At stage 0 in fp32
it has no optimizer of its own, and torch's would put NaN into every weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


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
def skipping(optimizer: torch.optim.Optimizer, is_skipped: Tensor) -> Iterator[None]:
    """A block in which ``optimizer.step()`` changes nothing if ``is_skipped``, bool [], is true.

    torch's fused optimizers look at it on the device (``found_inf``, as for torch's GradScaler);
    any other has to be kept from its step, which takes a look from the host.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = is_skipped.float()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
        return
    if not bool(is_skipped):
        yield
        return
    own_step = optimizer.__dict__.get("step")
    optimizer.step = _do_nothing  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del optimizer.step
        optimizer.__dict__.update({"step": own_step} if own_step else {})


def _do_nothing(closure: None = None) -> None:
    return None


def scalar(value: Tensor | float | None, device: torch.device) -> Tensor:
    """fp64 [] on the device, without waiting for it; None is NaN."""
    if isinstance(value, Tensor):
        return value.detach().to(device=device, dtype=torch.float64).reshape(())
    number = float("nan") if value is None else float(value)
    return torch.full((), number, dtype=torch.float64, device=device)
