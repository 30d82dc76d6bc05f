"""A run folder → its model with trained weights, its tokenizer and its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lmscale.checkpoint.differences import check_same_tensors
from lmscale.checkpoint.load import read_weights
from lmscale.config import RunConfig
from lmscale.config.training import Weights
from lmscale.evaluation.found import FoundRun, find_run
from lmscale.model.family import Model, build_model_on
from lmscale.model.initialize import persistent_buffers
from lmscale.tokenizer.base import Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    config: RunConfig
    tokenizer: Tokenizer
    model: Model  # on the asked device in the run's precision, in eval mode
    step: int  # steps that it was trained
    weights: Weights  # which ones the model has
    bos_id: int | None  # that it has learned to begin documents with


def load_run(
    folder: Path, *, step: int | None, device: torch.device, weights: Weights | None = None
) -> LoadedRun:
    """What ``find_run`` finds, as ``load_found`` loads it."""
    return load_found(find_run(folder, step=step, weights=weights), device=device)


def load_found(found: FoundRun, *, device: torch.device) -> LoadedRun:
    """Load a checkpoint for evaluation and generation.

    The weights get the precision the run computes in, so that figures agree with those in the loop;
    fp16 on a CPU becomes fp32. Raises ``CheckpointError`` if they are of another model.
    """
    config, manifest = found.config, found.manifest
    dtype = choose_dtype(config, device)
    model = build_model_on(config.model, config.sizes, device=device, dtype=dtype)
    fill_weights(
        model, read_weights(found.place, manifest, found.weights), origin=str(found.folder)
    )
    return LoadedRun(
        config=config,
        tokenizer=found.tokenizer,
        model=model.eval(),
        step=manifest.step,
        weights=found.weights,
        bos_id=found.bos_id,
    )


def choose_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """In which a run's model is evaluated: that of its training, but for fp16 on a CPU."""
    precision = config.engine.precision
    return DTYPES["fp32" if precision == "fp16" and device.type == "cpu" else precision]


def check_saved(
    model: nn.Module, saved: Mapping[str, Sequence[int]], *, origin: str
) -> dict[str, Tensor]:
    """The model's parameters and buffers by name. Raises ``CheckpointError`` with every name or
    shape that differs from those ``saved`` in the run ``origin``.
    """
    tensors = {**dict(model.named_parameters()), **dict(persistent_buffers(model))}
    check_same_tensors(
        {name: f"{list(shape)}" for name, shape in saved.items()},
        {name: f"{list(tensor.shape)}" for name, tensor in tensors.items()},
        it="it",
        where=f"{origin}: what it has saved",
        advice="Its config.yaml describes this model, and is not the one that it was trained by.",
    )
    return tensors


@torch.no_grad()
def fill_weights(model: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy parameters and buffers into the model; every name or shape that differs is reported."""
    saved = {name: weight.shape for name, weight in weights.items()}
    for name, tensor in check_saved(model, saved, origin=origin).items():
        tensor.copy_(weights[name])
