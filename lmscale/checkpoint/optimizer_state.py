"""The few numbers of the optimizer that belong to no element: Adam's step and fp16's loss scale."""

from __future__ import annotations

from typing import Any

from lmscale.checkpoint.manifest import OptimizerKind
from lmscale.engine.engine import Engine
from lmscale.engine.masters import base_optimizer, master_groups
from lmscale.engine.optimizer import STEP
from lmscale.errors import CheckpointError

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def read_optimizer(engine: Engine) -> OptimizerKind:
    steps = {int(state[STEP]) for state in _counted_states(engine)}
    if len(steps) > 1:
        raise AssertionError(f"the optimizer counts differ between parameters: {steps}")
    kind = engine.config.optimizer.kind
    return OptimizerKind(kind=kind, step=steps.pop() if steps else None)


def check_optimizer(engine: Engine, saved: OptimizerKind, where: str) -> None:
    """Raise ``CheckpointError`` when a checkpoint's states are of another optimizer's."""
    kind = engine.config.optimizer.kind
    if saved.kind != kind:
        raise CheckpointError(
            f"{where} holds the states of engine.optimizer.kind = {saved.kind}, but this run is "
            f"configured for {kind}. Set it back to {saved.kind}, or give this run a folder of "
            "its own (run.folder)."
        )
    if _counted_states(engine) and saved.step is None:
        raise CheckpointError(f"{where} does not say how many updates its optimizer has taken.")


def write_optimizer(engine: Engine, saved: OptimizerKind) -> None:
    for state in _counted_states(engine):
        state[STEP].fill_(saved.step)


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


def _counted_states(engine: Engine) -> list[dict[str, Any]]:
    state = base_optimizer(engine).state
    return [state[master] for master, _ in master_groups(engine) if STEP in state[master]]


def _scaler(engine: Engine) -> Any:
    """DeepSpeed keeps it in ``loss_scaler`` at stages 1 to 3 and in ``loss_scale_config`` at stage
    0.
    """
    if engine.config.precision != "fp16":
        return None
    outer = engine.deepspeed.optimizer
    return getattr(outer, "loss_scaler", None) or outer.loss_scale_config
