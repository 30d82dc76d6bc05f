"""Models of transformers, to compare ours with."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lmscale.config.hf.architecture import Architecture, Head
from lmscale.config.model import ModelConfig, Sizes
from lmscale.exchange.rules import Rule, plan_rules
from lmscale.model.initialize import Linear


def import_transformers() -> ModuleType:
    """transformers, which the test extra brings for Python 3.11 and later; below, the module that
    asks is skipped.
    """
    if sys.version_info < (3, 11):
        pytest.skip("compared with transformers on Python 3.11 and later", allow_module_level=True)
    return importlib.import_module("transformers")


def draw_weights(model: nn.Module) -> None:
    """Random ones, with norms around 1: around 0 gradients are too ill-conditioned to compare."""
    for name, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        nn.init.normal_(parameter, mean=float(is_scale), std=0.1)


def open_theirs(
    folder: Path,
    model: nn.Module,
    architecture: Architecture,
    section: ModelConfig,
    sizes: Sizes,
    *,
    head: Head | None = None,
    **settings: Any,
) -> tuple[nn.Module, tuple[Rule, ...]]:
    """Their class that ends in ``head``, which reads our weights from files, and how each of ours
    is called in it. ``settings``: of its config.json beside the section's, such as special ids.
    """
    transformers = import_transformers()
    head = head or next(iter(architecture.classes))
    name = architecture.classes[head]
    named = {"model_type": architecture.model_type, "architectures": [name]}
    config = named | architecture.render(section, sizes) | settings
    rules, stored = plan_rules(architecture, model, head), {}
    for rule in rules:
        value = model.get_parameter(rule.name).detach()
        tensors = dict(rule.to_theirs(value))
        assert {each: tuple(t.shape) for each, t in tensors.items()} == rule.their_shapes
        assert torch.equal(rule.to_ours(tensors.__getitem__), value) or rule.form == "less_one"
        stored |= tensors
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    theirs, told = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    return theirs.eval(), rules


def by_our_names(
    rules: Sequence[Rule], gradients: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Their gradients as those of our parameters."""
    for rule in rules:
        slopes = replace(rule, form="same") if rule.form == "less_one" else rule
        yield rule.name, slopes.to_ours(gradients.__getitem__)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """By all names of a parameter, as a tied one has several."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def compare_gradients(model: nn.Module, theirs: nn.Module, rules: Sequence[Rule]) -> None:
    """Each of ours is theirs, by the norm of the difference: some elements are sums that cancel."""
    for name, expected in by_our_names(rules, gradients_of(theirs)):
        ours = model.get_parameter(name).grad
        assert ours is not None, name
        if name.endswith(("qkv.bias", "key_value.bias")):
            ours, expected = (_without_keys(name, each, model) for each in (ours, expected))
        assert difference(ours, expected) < 1e-5, name


def _without_keys(name: str, gradient: Tensor, model: nn.Module) -> Tensor:
    """A key's bias moves all of a query's scores alike: its gradient is rounding alone."""
    module = model.get_submodule(name.removesuffix(".bias"))
    assert isinstance(module, Linear)
    *queries, _, values = gradient.split(module.parts)
    return torch.cat([*queries, values])


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()
