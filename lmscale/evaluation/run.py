"""A run folder → its model with trained weights, its tokenizer and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lmscale.checkpoint.differences import check_same_tensors
from lmscale.checkpoint.load import find_weights, read_weights
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
from lmscale.tokenizer.codec import Tokenizer, load_kept_tokenizer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """Load a run for evaluation and generation; ``step`` None takes the newest sound checkpoint.

    ``weights`` None: by ``evaluation.weights``, and by default their average where there is one.
    The weights get the precision the run computes in, so that figures agree with those in the loop;
    fp16 on a CPU becomes fp32. Raises ``ConfigError`` if this is no run, and ``CheckpointError`` if
    it holds no sound checkpoint or the weights are of another model.
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
    precision = config.engine.precision
    dtype = _DTYPES["fp32" if precision == "fp16" and device.type == "cpu" else precision]
    model = build_model_on(config.model, config.sizes, device=device, dtype=dtype)
    fill_weights(model, read_weights(place, manifest, weights), origin=str(folder))
    return LoadedRun(
        config=config,
        tokenizer=tokenizer,
        model=model.eval(),
        step=manifest.step,
        weights=weights,
        bos_id=load_bos(folder),
    )


@torch.no_grad()
def fill_weights(model: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy parameters and buffers into the model; every name or shape that differs is reported."""
    tensors = {**dict(model.named_parameters()), **dict(persistent_buffers(model))}
    check_same_tensors(
        {name: f"{list(weight.shape)}" for name, weight in weights.items()},
        {name: f"{list(tensor.shape)}" for name, tensor in tensors.items()},
        it="it",
        where=f"{origin}: what it has saved",
        advice="Its config.yaml describes this model, and is not the one that it was trained by.",
    )
    for name, tensor in tensors.items():
        tensor.copy_(weights[name])
