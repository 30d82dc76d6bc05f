"""Run folders with one checkpoint of drawn weights, made without an engine, ranks or training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmscale.checkpoint.layout import fragment_file
from lmscale.checkpoint.manifest import FROZEN, MASTER, Manifest, Untrained
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.write_file import DTYPE_NAMES, Part, arrange, write_file
from lmscale.config import RunConfig, dump_config
from lmscale.files.tokenizer_files import KEPT_FOLDER
from lmscale.model.family import build_model
from lmscale.runs.continuation import identity_of
from lmscale.tokenizer.codec import Tokenizer, save_tokenizer
from lmscale.train.initial import freeze_parameters

STEP = 7


def make_run(
    config: RunConfig,
    tokenizer: Tokenizer,
    *,
    ranks: int = 2,
    begins: Mapping[str, Tensor] | None = None,
    frozen_dtype: torch.dtype = torch.float32,
    is_finite: bool = True,
    state: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Write ``config.folder`` with weights that ``draw`` gives, in fragments of so many ranks;
    returns the model that it holds. ``begins``: weights that it has instead; ``frozen_dtype``: of
    those that are not trained, fp32 or bf16. ``state``: more of the manifest's.
    """
    folder = config.folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    save_tokenizer(tokenizer, folder / KEPT_FOLDER)
    model = draw(build_model(config.model, config.sizes)).eval()
    model.load_state_dict(begins or {}, strict=False)
    freeze_parameters(model, config.train.freeze)
    place = LocalPlace(folder / "checkpoints")
    place.begin(STEP)
    weights = {name: each.detach().float() for name, each in model.named_parameters()}
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    weights |= {name: weights[name].to(frozen_dtype) for name in frozen}
    files = [
        write_file(place, STEP, fragment_file(rank, "local"), parts, retries=0)
        for rank in range(ranks)
        for parts in [arrange(_share(weights, frozen, rank, ranks))]
    ]
    fields: dict[str, Any] = {
        "step": STEP,
        "parameters": {n: tuple(each.shape) for n, each in weights.items() if n not in frozen},
        "states": dict.fromkeys(weights.keys() - frozen, (MASTER,)),
        "replicated": {
            name: Untrained(
                shape=tuple(weights[name].shape), dtype=DTYPE_NAMES[frozen_dtype], kind=FROZEN
            )
            for name in frozen
        },
        "optimizer": {"kind": "adamw", "step": STEP},
        "loss_scale": None,
        "state": {
            "progress": {"step": STEP, "n": 84, "tokens": 2600, "skipped_steps": 0},
            **(state or {}),
        },
        "identity": identity_of(config, tokenizer.fingerprint),
        "written_by": {"world_size": ranks, "zero_stage": 1, "precision": "fp32"},
        "is_finite": is_finite,
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


def _share(weights: dict[str, Tensor], frozen: set[str], rank: int, ranks: int) -> list[Part]:
    """Even runs of elements, wherever they cut a matrix."""
    parts = []
    for name, value in weights.items():
        flat = value.reshape(-1)
        start, end = len(flat) * rank // ranks, len(flat) * (rank + 1) // ranks
        if start < end:
            tensor = flat[start:end].contiguous()
            kind = FROZEN if name in frozen else MASTER
            parts.append(Part(parameter=name, kind=kind, offset=start, tensor=tensor))
    return parts
