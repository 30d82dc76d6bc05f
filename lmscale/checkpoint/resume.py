"""Reading a checkpoint back: into an engine of any stage and world size, or as whole tensors."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lmscale.checkpoint.fragments import held_fragments, parameter_shapes, refresh_parameters
from lmscale.checkpoint.layout import (
    MASTER,
    Manifest,
    plan_reads,
    step_folder,
    tensor_name,
)
from lmscale.checkpoint.optimizer_state import write_loss_scale, write_optimizer
from lmscale.checkpoint.store import find_damage, find_sound, load_manifest
from lmscale.engine.engine import Engine
from lmscale.errors import CheckpointError
from lmscale.runtime.collectives import failing_together

MAX_NAMED = 8  # differences told one by one


class FragmentReader:
    """Reads any run of elements of any parameter; opens each file once, copies nothing else."""

    def __init__(self, folder: Path, manifest: Manifest, stack: ExitStack) -> None:
        self._folder = folder
        self._pieces = plan_reads(manifest.files)
        self._stack = stack
        self._open: dict[str, Any] = {}

    def read_into(self, target: Tensor, parameter: str, kind: str, offset: int) -> None:
        """Fill ``target`` (1-D) with elements [offset, offset + len(target)) of the flattened
        parameter.
        """
        end = offset + target.numel()
        filled = 0
        for start, count, file_name in self._pieces[parameter]:
            low, high = max(start, offset), min(start + count, end)
            if low >= high:
                continue
            stored = self._file(file_name).get_slice(tensor_name(parameter, kind, start))
            target[low - offset : high - offset].copy_(stored[low - start : high - start])
            filled += high - low
        if filled != target.numel():
            raise CheckpointError(
                f"{self._folder}: {parameter} has only {filled} of the elements {offset} to {end}."
            )

    def _file(self, name: str) -> Any:
        if name not in self._open:
            handle = safe_open(str(self._folder / name), framework="pt", device="cpu")
            self._open[name] = self._stack.enter_context(handle)  # pyright: ignore
        return self._open[name]


def load_checkpoint(root: Path, manifest: Manifest, engine: Engine) -> None:
    """Put a verified checkpoint into the engine, whatever stage and world size wrote it.

    All ranks call this together; each reads only the elements that it holds. Raises
    ``CheckpointError`` when the checkpoint is of another model.
    """
    check_same_model(root, manifest, parameter_shapes(engine))
    with failing_together(), ExitStack() as stack, torch.no_grad():
        reader = FragmentReader(step_folder(root, manifest.step), manifest, stack)
        for fragment in held_fragments(engine):
            for kind, view in fragment.tensors.items():
                reader.read_into(view, fragment.parameter, kind, fragment.offset)
        write_optimizer(engine, manifest.optimizer)
        write_loss_scale(engine, manifest.loss_scale)
    refresh_parameters(engine)


def check_same_model(root: Path, manifest: Manifest, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise ``CheckpointError`` naming the parameters by which two models differ."""
    stored = manifest.parameters
    differences = [f"{name} is not in the checkpoint" for name in shapes if name not in stored]
    differences += [f"{name} is only in the checkpoint" for name in stored if name not in shapes]
    differences += [
        f"{name} is {stored[name]} in the checkpoint and {shape} in this model"
        for name, shape in shapes.items()
        if name in stored and stored[name] != shape
    ]
    if differences:
        more = len(differences) - MAX_NAMED
        raise CheckpointError(
            [
                f"{step_folder(root, manifest.step)} is a checkpoint of another model:",
                *(f"  {difference}" for difference in differences[:MAX_NAMED]),
                *([f"  and {more} more"] if more > 0 else []),
                "Give this run a folder of its own (run.folder), or restore the model section of "
                "its YAML.",
            ]
        )


def load_model_weights(run_folder: Path, step: int | None = None) -> dict[str, Tensor]:
    """The model's fp32 weights, whole, on the CPU: parameter name → tensor of its shape.

    ``step`` None takes the newest checkpoint that verifies and is finite. Needs neither ranks nor
    DeepSpeed's engine. Raises ``CheckpointError`` when there is none or its files are damaged.
    """
    root = run_folder / "checkpoints"
    if step is None:
        manifest = find_sound(root)
        if manifest is None:
            raise CheckpointError(
                f"{run_folder} has no checkpoint yet. Train it first: lmscale train CONFIG"
            )
    else:
        manifest = load_manifest(root, step)
        damage = find_damage(step_folder(root, step), manifest.files)
        if damage:
            raise CheckpointError([f"{problem}." for problem in damage])
    folder = step_folder(root, manifest.step)
    weights: dict[str, Tensor] = {}
    with ExitStack() as stack:
        reader = FragmentReader(folder, manifest, stack)
        for name, shape in manifest.parameters.items():
            weights[name] = torch.empty(shape, dtype=torch.float32)
            reader.read_into(weights[name].view(-1), name, MASTER, 0)
    return weights
