"""Micro-batches of every family's recipes, and the module that scores them, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from recipes import RECIPES
from tiny_run import tiny_config
from torch import nn

from lmscale.config import RunConfig
from lmscale.model.family import build_model_on
from lmscale.objective.objective import build_preparation, build_scoring
from lmscale.stream.batches import Batch
from lmscale.stream.loader import open_loader
from lmscale.stream.stream import open_stream
from lmscale.stream.worker import LoaderJob
from lmscale.train.initial import draw_weights, fill_weights

GPT2 = {
    "positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True,
    "kv_heads": 4, "tied_embeddings": True,
}  # fmt: skip
WINDOWS = {"sliding_windows": [9, 0], "qk_norm": True, "output_norms": True}
CASES: Mapping[str, Mapping[str, Any]] = {
    **RECIPES,
    "gpt2": {"model": GPT2},
    "windows": {f"model.{name}": value for name, value in WINDOWS.items()},
    "softcap": {"model.attention_softcap": 20.0},
    "recomputed": {"model.activation_checkpoint_every": 1},
}


def configure(case: str, data: Path, folder: Path, **settings: Any) -> RunConfig:
    """A run of a case on ``build_tiny_data``'s ``data``."""
    return tiny_config(data, folder, deepcopy({**CASES[case], **settings}))


def build_scored(
    config: RunConfig, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The model under its objective, in training."""
    model = build_model_on(config.model, config.sizes, device=torch.device(device), dtype=dtype)
    if device == "cpu":
        fill_weights(model, draw_weights(1))
    return build_scoring(model, config).train()


def micro_batches(config: RunConfig, count: int) -> list[Batch]:
    """The first ones of a lone rank."""
    with open_stream(config.stream, seed=config.run.seed, shape=config.window) as stream:
        job = LoaderJob(
            stream=stream,
            preparation=build_preparation(config),
            plan=config.batch.plan(1),
            data_rank=0,
            first_n=0,
            num_steps=count,
        )
        with open_loader(job, workers=0) as loader:
            steps = list(islice(loader, count))
    return [micro for step in steps for micro in step.micro_batches][:count]
