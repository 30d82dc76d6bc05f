"""A run's configuration → what it is among transformers' architectures, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lmscale.checkpoint.load import open_weights
from lmscale.config import RunConfig
from lmscale.config.hf.architecture import Architecture, Head
from lmscale.config.hf.target import Target, plan_target
from lmscale.config.model import ModelConfig, Sizes
from lmscale.errors import CheckpointError, DataError
from lmscale.evaluation.found import FoundRun
from lmscale.evaluation.run import check_saved
from lmscale.exchange.folding import Read, read_folded
from lmscale.exchange.rules import Rule, find_left_out, plan_rules
from lmscale.exchange.write_tensors import Stored
from lmscale.model.family import Model, build_model_on
from lmscale.model.lora import merging

META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """A run's model there."""

    target: Target
    own_section: ModelConfig
    """The run's, without adapters."""
    rules: tuple[Rule, ...]
    left_out: tuple[str, ...]
    """Parameters that their class has no place for."""

    @property
    def architecture(self) -> Architecture:
        return self.target.architecture

    @property
    def head(self) -> Head:
        return self.target.head

    @property
    def section(self) -> ModelConfig:
        """That which the architecture is: the run's own, or one of the same function."""
        return self.target.section

    @property
    def sizes(self) -> Sizes:
        """With the rows that are exported: of a vocabulary that was only rounded up, the ids in
        use.
        """
        return self.target.sizes

    @property
    def class_name(self) -> str:
        return self.target.class_name

    @property
    def writes(self) -> bool:
        """Whether that class goes on from a text."""
        return self.head == "pairs" or (self.section.family, self.head) == ("decoder", "tokens")


def plan_export(config: RunConfig, *, model_type: str | None = None) -> ExportPlan:
    """What a run's model is there, or as one architecture. Raises ``ConfigError`` where it is
    nothing there.
    """
    target = plan_target(config, model_type=model_type)
    own, model = (
        build_model_on(section, target.sizes, device=META, dtype=torch.float32)
        for section in (config.model.without_adapters, target.section)
    )
    return ExportPlan(
        target=target,
        own_section=config.model.without_adapters,
        rules=plan_rules(target.architecture, model, target.head),
        left_out=tuple(find_left_out(target.architecture, own, target.head)),
    )


def check_found(found: FoundRun) -> None:
    """Raise ``CheckpointError`` where a checkpoint is not of the model of its config.yaml, or holds
    what is not finite.
    """
    config = found.config
    model = build_model_on(config.model, config.sizes, device=META, dtype=torch.float32)
    check_saved(model, found.manifest.weight_shapes, origin=str(found.folder))
    if not found.manifest.is_finite:
        raise CheckpointError(f"{found.name} holds weights that are not finite.")


@contextmanager
def open_own(found: FoundRun, plan: ExportPlan, *, merges: bool = True) -> Iterator[Read]:
    """A checkpoint's weights, fp32, with adapters merged or, without ``merges``, beside them, and
    only the rows that are exported. A frozen one lies there in the run's precision, in which
    nothing could be folded into it.
    """
    config, held = found.config, found.manifest.weight_shapes
    model = build_model_on(plan.own_section, plan.sizes, device=META, dtype=torch.float32)
    rows = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
    with open_weights(found.place, found.manifest, found.weights) as read:
        whole = merging(read, held, config.model.lora) if merges else read
        yield lambda name: whole(name)[: rows[name]].float()


@contextmanager
def open_export(found: FoundRun, plan: ExportPlan, *, merges: bool = True) -> Iterator[Read]:
    """A checkpoint's weights as they are exported: those of ``plan.section``. ``merges``: as of
    ``open_own``.
    """
    shapes = {rule.name: rule.shape for rule in plan.rules}
    with open_own(found, plan, merges=merges) as read:
        held = found.manifest.weight_shapes
        yield read_folded(read, plan.target.folding, held=held, shapes=shapes)


def plan_stored(plan: ExportPlan, dtype: torch.dtype) -> list[Stored]:
    """Their tensors in the order of the files."""
    return [
        Stored(name=name, shape=shape, dtype=dtype)
        for rule in plan.rules
        for name, shape in rule.their_shapes.items()
    ]


_LARGER = {
    torch.float16: "Export it in another one: --dtype bf16 or fp32",
    torch.bfloat16: "Export it in another one: --dtype fp32",
    torch.float32: "Export another step: --step",
}


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
                    f"{rule.name} holds a value that is not finite in {dtype}. {_LARGER[dtype]}"
                )
            yield name, value


def fill_as_stored(model: Model, plan: ExportPlan, read: Read, dtype: torch.dtype) -> None:
    """Give our model of ``plan.section`` the weights as they are stored in ``dtype``, in its own
    dtype.
    """
    with torch.no_grad():
        for rule in plan.rules:
            value = read(rule.name)
            if dtype != torch.float32:
                rounded = {name: each.to(dtype) for name, each in rule.to_theirs(value)}
                value = rule.to_ours(rounded.__getitem__)
            model.get_parameter(rule.name).copy_(value)


def fill_own(model: Model, found: FoundRun, plan: ExportPlan) -> None:
    """Give our model of ``plan.own_section`` the run's weights, nothing folded."""
    with torch.no_grad(), open_own(found, plan) as read:
        for name, parameter in model.named_parameters():
            parameter.copy_(read(name))
