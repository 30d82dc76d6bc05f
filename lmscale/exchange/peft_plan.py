"""A run's adapters, and whether a folder of transformers' is the model that they are of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.load import open_weights
from lmscale.config import RunConfig
from lmscale.errors import CheckpointError, ConfigError, DataError
from lmscale.evaluation.run import FoundRun
from lmscale.exchange.folding import Read, read_folded
from lmscale.exchange.import_files import SourceWeights, find_source_weights
from lmscale.exchange.peft_adapter import TheirAdapter, plan_adapters
from lmscale.exchange.plan_export import META, ExportPlan, check_found, plan_export
from lmscale.exchange.rules import Rule
from lmscale.model.family import build_model_on
from lmscale.model.lora import read_adapter

MAX_NAMED = 3  # of the tensors by which two models differ


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """A run's adapters, and the model beside which they are written."""

    found: FoundRun
    plan: ExportPlan
    adapters: tuple[TheirAdapter, ...]
    whole: tuple[Rule, ...]
    """Of what the run trained whole, such as a classifier."""
    base: SourceWeights

    @property
    def saved_modules(self) -> list[str]:
        """Theirs, of ``whole``."""
        names = (name for rule in self.whole for name in rule.theirs)
        return list(dict.fromkeys(name.rpartition(".")[0] for name in names))

    @property
    def beside(self) -> set[str]:
        """Tensors that the base has for another class, and those that it need not have."""
        named = {name for rule in self.plan.rules for name in rule.theirs}
        return {name for rule in self.whole for name in rule.theirs} | {
            name for name in self.base.tensors if name not in named
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What their model is loaded with in place of what the base's config.json says."""
        settings = dict(self.plan.target.labels)
        if "id2label" in settings:  # as JSON has it
            settings["id2label"] = {int(k): name for k, name in settings["id2label"].items()}
        return settings

    def read_adapter(self, read: Read, matrix: str) -> tuple[Tensor, list[Tensor]]:
        """A of all parts and the B of each, of which B has what was folded into the matrix.
        ``read``: of the checkpoint.
        """
        found = read_adapter(read, self.found.manifest.weight_shapes, matrix)
        assert found is not None, f"{matrix} has an adapter"
        a, b_of_parts = found
        folded = read_folded(
            lambda _: torch.cat(b_of_parts), self.plan.target.folding, held={matrix: ()}, shapes={}
        )
        return a, [*folded(matrix).split([len(b) for b in b_of_parts])]


@contextmanager
def open_beside(found: FoundRun, plan: ExportPlan) -> Iterator[Read]:
    """A checkpoint's weights beside its adapters, as they are exported."""
    held = found.manifest.weight_shapes
    shapes = {rule.name: rule.shape for rule in plan.rules}
    with open_weights(found.place, found.manifest, found.weights) as read:
        folding = plan.target.folding

        def read_cut(name: str) -> Tensor:
            return read(name)[: shapes[name][0]]

        yield read_folded(read_cut, folding, held=held, shapes=shapes)


def plan_adaptation(found: FoundRun, base_folder: Path) -> Adaptation:
    """What is written of a run's checkpoint beside a base. Raises ``ConfigError``,
    ``CheckpointError`` and ``DataError`` where that cannot be.
    """
    if found.config.model.lora.rank == 0:
        raise ConfigError(
            f"{found.folder} has no adapters (model.lora), which --format peft writes. Leave it "
            "out to export the model."
        )
    if not found.manifest.is_finite:
        raise CheckpointError(f"{found.name} holds weights that are not finite.")
    base = find_source_weights(base_folder)
    check_found(found)
    plan = _plan_as_base(found.config, base)
    whole = tuple(rule for rule in plan.rules if rule.name in found.manifest.parameters)
    with open_beside(found, plan) as read:
        _check_base(found, plan, base, read)
    model = build_model_on(found.config.model, plan.sizes, device=META, dtype=torch.float32)
    adapters = plan_adapters(model, plan.rules)
    return Adaptation(found=found, plan=plan, adapters=adapters, whole=whole, base=base)


def _plan_as_base(config: RunConfig, base: SourceWeights) -> ExportPlan:
    """With as many rows of the vocabulary as the base has, where both only round it up otherwise:
    a run that adapts another one has to give the other's ``model.vocab_size``.
    """
    plan = plan_export(config)
    rule = next(rule for rule in plan.rules if rule.name == "embedding.weight")
    stored = base.tensors.get(rule.theirs[0])
    if stored is None or not config.num_ids <= stored.shape[0] <= config.vocab_size:
        return plan
    model = config.model.model_copy(update={"vocab_size": stored.shape[0]})
    return plan_export(config.model_copy(update={"model": model}))


def _check_base(found: FoundRun, plan: ExportPlan, base: SourceWeights, read: Read) -> None:
    """Raise ``DataError`` where the base holds other weights than those that the run kept as they
    were: ``read`` gives them. Where one of the two is rounded, to bf16 say, so is the other one for
    this. What the run trained whole the base need not have.
    """
    problems = []
    scales = plan.target.folding.scales
    with base.opened() as read_base:
        for rule in plan.rules:
            if rule.name in found.manifest.parameters:
                continue
            is_scaled = any(fnmatchcase(rule.name, scale.pattern) for scale in scales)
            value = read(rule.name)
            problems += _differences(rule, value, base, read_base, is_scaled=is_scaled)
    if problems:
        more = f"; and {len(problems) - MAX_NAMED:,} more" if len(problems) > MAX_NAMED else ""
        source = found.config.run.init_from or "RUN"
        raise DataError(
            f"{base.folder} is not the model that {found.folder} adapts: "
            f"{'; '.join(problems[:MAX_NAMED])}{more}. Give --base an export of that one: "
            f"lmscale export {source} --out DIR"
        )


def _differences(
    rule: Rule, value: Tensor, base: SourceWeights, read_base: Read, *, is_scaled: bool
) -> Iterator[str]:
    for name, part in rule.to_theirs(value.float()):
        if name not in base.tensors:
            yield f"it has no {name}"
        elif (found := base.tensors[name].shape) != tuple(part.shape):
            yield f"its {name} is {list(found)}, not {list(part.shape)}"
        elif not _is_same(read_base(name), part, value.dtype, is_scaled=is_scaled):
            yield f"its {name} has other values"


def _is_same(theirs: Tensor, part: Tensor, kept: torch.dtype, *, is_scaled: bool) -> bool:
    """``kept``: of the checkpoint; ``is_scaled``: it was rounded before a factor was folded in."""
    if torch.equal(theirs, part.to(theirs.dtype)) or torch.equal(theirs.to(kept), part.to(kept)):
        return True
    step = max(torch.finfo(each).eps for each in (theirs.dtype, kept))
    return is_scaled and torch.allclose(theirs.float(), part, rtol=2 * step, atol=0)
