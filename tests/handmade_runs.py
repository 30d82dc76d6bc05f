"""Run folders with one checkpoint of drawn weights, made without an engine, ranks or training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmscale.checkpoint.layout import fragment_file
from lmscale.checkpoint.manifest import MASTER, Manifest
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.write_file import Part, arrange, write_file
from lmscale.config import RunConfig, dump_config
from lmscale.files.tokenizer_files import KEPT_FOLDER
from lmscale.model.family import build_model
from lmscale.runs.continuation import identity_of
from lmscale.tokenizer.codec import Tokenizer, save_tokenizer

STEP = 7


def make_run(config: RunConfig, tokenizer: Tokenizer, *, ranks: int = 2) -> nn.Module:
    """Write ``config.folder`` with weights that ``draw`` gives, in fragments of so many ranks;
    returns the model that it holds.
    """
    folder = config.folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    save_tokenizer(tokenizer, folder / KEPT_FOLDER)
    model = draw(build_model(config.model, config.sizes)).eval()
    place = LocalPlace(folder / "checkpoints")
    place.begin(STEP)
    weights = {name: each.detach().float() for name, each in model.named_parameters()}
    files = [
        write_file(place, STEP, fragment_file(rank, "local"), parts, retries=0)
        for rank in range(ranks)
        for parts in [arrange(_share(weights, rank, ranks))]
    ]
    fields: dict[str, Any] = {
        "step": STEP,
        "parameters": {name: tuple(each.shape) for name, each in weights.items()},
        "states": dict.fromkeys(weights, (MASTER,)),
        "optimizer": {"kind": "adamw", "step": STEP},
        "loss_scale": None,
        "state": {"progress": {"step": STEP, "n": 84, "tokens": 2600, "skipped_steps": 0}},
        "identity": identity_of(config, tokenizer.fingerprint),
        "written_by": {"world_size": ranks, "zero_stage": 1, "precision": "fp32"},
        "is_finite": True,
        "files": tuple(files),
    }
    place.commit(STEP, Manifest(**fields).to_bytes())
    return model


def draw(model: nn.Module) -> nn.Module:
    """Weights by which logits differ: those of norms around 1, so that none vanishes."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        nn.init.normal_(parameter, mean=float(is_scale), std=0.1, generator=generator)
    return model


def _share(weights: dict[str, Tensor], rank: int, ranks: int) -> list[Part]:
    """Even runs of elements, wherever they cut a matrix."""
    parts = []
    for name, value in weights.items():
        flat = value.reshape(-1)
        start, end = len(flat) * rank // ranks, len(flat) * (rank + 1) // ranks
        if start < end:
            tensor = flat[start:end].contiguous()
            parts.append(Part(parameter=name, kind=MASTER, offset=start, tensor=tensor))
    return parts
