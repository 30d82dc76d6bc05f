"""The few numbers of the optimizer that belong to no element: Adam's step and fp16's loss scale."""

from __future__ import annotations

from typing import Any

from lmscale.engine.engine import Engine, base_optimizer, master_tensors
from lmscale.errors import CheckpointError

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def read_optimizer(engine: Engine) -> dict[str, Any]:
    """The optimizer's name and the updates it has taken, which are fewer than steps when some were
    skipped.
    """
    optimizer = base_optimizer(engine)
    steps = {int(optimizer.state[master]["step"]) for master in master_tensors(engine)}
    if len(steps) != 1:
        raise AssertionError(f"the optimizer counts differ between parameters: {steps}")
    return {"name": type(optimizer).__name__, "step": steps.pop()}


def write_optimizer(engine: Engine, saved: dict[str, Any]) -> None:
    optimizer = base_optimizer(engine)
    name = type(optimizer).__name__
    if saved["name"] != name:
        raise CheckpointError(
            f"The checkpoint holds states of {saved['name']}, but this run is configured for "
            f"{name}."
        )
    for master in master_tensors(engine):
        optimizer.state[master]["step"].fill_(saved["step"])


def read_loss_scale(engine: Engine) -> dict[str, Any] | None:
    scaler = _scaler(engine)
    if scaler is None:
        return None
    return {name: getattr(scaler, name) for name in _SCALER_FIELDS if hasattr(scaler, name)}


def write_loss_scale(engine: Engine, saved: dict[str, Any] | None) -> None:
    """Take over the scale where both runs are fp16; a run that changes precision begins with its
    own.
    """
    scaler = _scaler(engine)
    if scaler is None or saved is None:
        return
    for name in _SCALER_FIELDS:
        if name in saved and hasattr(scaler, name):
            setattr(scaler, name, saved[name])


def _scaler(engine: Engine) -> Any:
    """DeepSpeed keeps it in ``loss_scaler`` at stages 1 to 3 and in ``loss_scale_config`` at stage
    0.
    """
    if engine.config.precision != "fp16":
        return None
    outer = engine.deepspeed.optimizer
    return getattr(outer, "loss_scaler", None) or outer.loss_scale_config
