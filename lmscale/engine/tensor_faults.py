"""The faults on purpose that strike tensors: a loss that is no number, a flipped bit."""

from __future__ import annotations

import torch

from lmscale.files import fault_points


def poison(loss: torch.Tensor) -> torch.Tensor:
    """The moment step.forward: the loss, or one that is not a number."""
    if fault_points.armed is not None:
        step = fault_points.armed.step
        fault_points.hit("step.forward", step=step)
        for _ in fault_points.armed.strikes({"nan"}, "step.forward", step):
            loss = loss * float("nan")
    return loss


def flip_gradient(module: torch.nn.Module, step: int) -> None:
    """The moment step.gradient, before a step's first backward pass, which a flip waits for."""
    if fault_points.armed is not None:
        fault_points.hit("step.gradient", step=step)
        for fault in fault_points.armed.strikes({"flip-gradient"}, "step.gradient", step):
            _flip_next_gradient(_last_matrix(module), fault.bit)


def flip_weight(module: torch.nn.Module, step: int) -> None:
    """Right after the update: in this rank's copy of a parameter, at ZeRO 3 in its own part."""
    if fault_points.armed is not None:
        for fault in fault_points.armed.strikes({"flip-weight"}, "step.update", step):
            parameter = _last_matrix(module)
            tensor = getattr(parameter, "ds_tensor", parameter).detach()
            tensor.copy_(_flipped(tensor, fault.bit))


def _last_matrix(module: torch.nn.Module) -> torch.nn.Parameter:
    """One that every sample goes through, unlike a row of the embedding."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [p for p in trained if len(getattr(p, "ds_shape", p.shape)) > 1][-1]


def _flip_next_gradient(parameter: torch.nn.Parameter, bit: int) -> None:
    def flip(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()  # one backward pass of the step's micro-batches is enough
        return _flipped(gradient, bit)

    handle = parameter.register_hook(flip)


def _flipped(tensor: torch.Tensor, bit: int) -> torch.Tensor:
    """A copy of ``tensor`` with one bit of the middle element flipped."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    copy = tensor.clone(memory_format=torch.contiguous_format)
    bits = copy.view(-1).view(integers)
    width = 8 * tensor.element_size()
    mask = 1 << (width - 1 - bit)
    bits[bits.numel() // 2] ^= mask - (1 << width) if bit == 0 else mask  # as a signed number
    return copy
