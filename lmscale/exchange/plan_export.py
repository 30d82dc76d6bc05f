"""A run's configuration → what it is among transformers' architectures, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmscale.checkpoint.differences import check_same_tensors
from lmscale.checkpoint.load import open_weights
from lmscale.config import RunConfig
from lmscale.config.hf.architecture import Architecture, Head
from lmscale.config.hf.choose import choose_architecture
from lmscale.config.model import ModelConfig, Sizes
from lmscale.errors import DataError
from lmscale.evaluation.run import FoundRun
from lmscale.exchange.rules import Rule, find_left_out, plan_rules
from lmscale.exchange.write_tensors import Stored
from lmscale.model.family import Model, build_model_on
from lmscale.model.initialize import persistent_buffers
from lmscale.model.lora import merging

META = torch.device("meta")
Read = Callable[[str], Tensor]
"""A parameter's name → all of it, fp32, on the CPU, with the rows that are exported."""


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """A run's model there."""

    architecture: Architecture
    head: Head
    section: ModelConfig
    sizes: Sizes
    """With the rows that are exported: of a vocabulary that was only rounded up, the ids in use."""
    rules: tuple[Rule, ...]
    left_out: tuple[str, ...]
    """Parameters that their class has no place for."""

    @property
    def class_name(self) -> str:
        return self.architecture.classes[self.head]


def plan_export(config: RunConfig) -> ExportPlan:
    """What a run's model is there. Raises ``ConfigError`` where no architecture can be it."""
    section, sizes = config.model.without_adapters, export_sizes(config)
    architecture = choose_architecture(section, sizes)
    model = build_model_on(section, sizes, device=META, dtype=torch.float32)
    return ExportPlan(
        architecture=architecture,
        head=next(iter(architecture.classes)),
        section=section,
        sizes=sizes,
        rules=plan_rules(architecture, model),
        left_out=tuple(find_left_out(architecture, model)),
    )


def export_sizes(config: RunConfig) -> Sizes:
    """A run's sizes without the rows of the embedding that only round it up."""
    is_given = config.model.vocab_size is not None
    return replace(config.sizes, vocab_size=config.vocab_size if is_given else config.num_ids)


def check_found(found: FoundRun) -> None:
    """Raise ``CheckpointError`` where a checkpoint is not of the model of its config.yaml."""
    config = found.config
    model = build_model_on(config.model, config.sizes, device=META, dtype=torch.float32)
    tensors = {**dict(model.named_parameters()), **dict(persistent_buffers(model))}
    check_same_tensors(
        {name: f"{list(shape)}" for name, shape in found.manifest.weight_shapes.items()},
        {name: f"{list(tensor.shape)}" for name, tensor in tensors.items()},
        it="it",
        where=f"{found.folder}: what it has saved",
        advice="Its config.yaml describes this model, and is not the one that it was trained by.",
    )


@contextmanager
def open_export(found: FoundRun, plan: ExportPlan) -> Iterator[Read]:
    """A checkpoint's weights as they are exported: adapters merged, only the rows that are."""
    config, shapes = found.config, {rule.name: rule.shape for rule in plan.rules}
    with open_weights(found.place, found.manifest, found.weights) as read:
        whole = merging(read, found.manifest.weight_shapes, config.model.lora)

        def read_cut(name: str) -> Tensor:
            return whole(name)[: shapes[name][0]]

        yield read_cut


def plan_stored(plan: ExportPlan, dtype: torch.dtype) -> list[Stored]:
    """Their tensors in the order of the files."""
    return [
        Stored(name=name, shape=shape, dtype=dtype)
        for rule in plan.rules
        for name, shape in rule.their_shapes.items()
    ]


def render_tensors(
    plan: ExportPlan, read: Read, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Their tensors, one parameter of ours in memory at a time. Raises ``DataError`` for a value
    that the dtype cannot hold.
    """
    for rule in plan.rules:
        for name, value in rule.to_theirs(read(rule.name)):
            value = value.to(dtype)
            if value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all():
                raise DataError(
                    f"{rule.name} holds a value that is not finite in {dtype}. Export it in "
                    "another one: --dtype bf16 or fp32"
                )
            yield name, value


def fill_as_stored(model: Model, plan: ExportPlan, read: Read, dtype: torch.dtype) -> None:
    """Give our model the weights as they are stored in ``dtype``, in its own dtype."""
    with torch.no_grad():
        for rule in plan.rules:
            value = read(rule.name)
            if dtype != torch.float32:
                rounded = {name: each.to(dtype) for name, each in rule.to_theirs(value)}
                value = rule.to_ours(rounded.__getitem__)
            model.get_parameter(rule.name).copy_(value)
