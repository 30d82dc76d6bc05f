"""A run folder → its model with trained weights, its tokenizer and its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lmscale.checkpoint.differences import check_same_tensors
from lmscale.checkpoint.load import find_weights, read_weights
from lmscale.checkpoint.manifest import Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.places.run_place import open_place
from lmscale.config import RunConfig
from lmscale.config.training import AVERAGE, Weights
from lmscale.errors import CheckpointError
from lmscale.history.history import read_history
from lmscale.model.family import Model, build_model_on
from lmscale.model.initialize import persistent_buffers
from lmscale.ranks.ranks import Ranks
from lmscale.runs.continuation import identity_of
from lmscale.runs.run_folder import load_run_config
from lmscale.stream.ledger import load_bos
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.codec import load_kept_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    config: RunConfig
    tokenizer: Tokenizer
    model: Model  # on the asked device in the run's precision, in eval mode
    step: int  # steps that it was trained
    weights: Weights  # which ones the model has
    bos_id: int | None  # that it has learned to begin documents with


@dataclass(frozen=True, kw_only=True)
class FoundRun:
    """A run's checkpoint that was verified, before any weight is read."""

    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    place: Place
    manifest: Manifest
    weights: Weights  # which ones to read: ``open_weights(place, manifest, weights)``
    bos_id: int | None  # that the run has learned to begin documents with

    @property
    def name(self) -> str:
        """What people call the checkpoint."""
        return self.place.name_of(self.manifest.step)


def find_run(folder: Path, *, step: int | None, weights: Weights | None = None) -> FoundRun:
    """The checkpoint of ``step`` in a run's folder; None: the newest sound one.

    ``weights`` None: by ``evaluation.weights``, and by default their average where there is one.
    Raises ``ConfigError`` if this is no run, and ``CheckpointError`` if it holds no sound
    checkpoint.
    """
    config = load_run_config(folder)
    tokenizer = load_kept_tokenizer(folder, config.tokenizer.folder)
    place = open_place(config, folder)
    manifest = find_weights(
        place,
        step,
        ranks=Ranks(),
        origin=str(folder),
        undone=read_history(folder).undone,
        identity=identity_of(config, tokenizer.fingerprint),
    )
    weights = (
        weights or config.evaluation.weights or (AVERAGE if manifest.has_average else "trained")
    )
    if weights == AVERAGE and not manifest.has_average:
        raise CheckpointError(
            f"{place.name_of(manifest.step)} holds no average of the weights: the run kept none "
            "(engine.ema_decay). Take the trained ones: --weights trained"
        )
    return FoundRun(
        folder=folder,
        config=config,
        tokenizer=tokenizer,
        place=place,
        manifest=manifest,
        weights=weights,
        bos_id=load_bos(folder),
    )


def load_run(
    folder: Path, *, step: int | None, device: torch.device, weights: Weights | None = None
) -> LoadedRun:
    """Load what ``find_run`` finds for evaluation and generation.

    The weights get the precision the run computes in, so that figures agree with those in the loop;
    fp16 on a CPU becomes fp32. Raises as ``find_run``, and ``CheckpointError`` if the weights are
    of another model.
    """
    found = find_run(folder, step=step, weights=weights)
    config, manifest = found.config, found.manifest
    dtype = choose_dtype(config, device)
    model = build_model_on(config.model, config.sizes, device=device, dtype=dtype)
    fill_weights(model, read_weights(found.place, manifest, found.weights), origin=str(folder))
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
