"""Folders of transformers' models, tiny ones, as its ``save_pretrained`` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from theirs import import_transformers

transformers = import_transformers()
LLAMA = {
    "vocab_size": 512, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def save_theirs(
    folder: Path,
    name: str = "Llama",
    ends_in: str = "ForCausalLM",
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    **settings: Any,
) -> Path:
    """A model with random weights, norms around 1."""
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{ends_in}")(config)
    for parameter in model.parameters():
        is_scale = parameter.ndim == 1 and bool((parameter == 1).all())
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write model.safetensors anew with what ``change`` has done to its tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
