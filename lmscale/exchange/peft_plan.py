"""A run's adapters, and the folder of transformers' that holds the model that they are of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmscale.evaluation.found import FoundRun
from lmscale.exchange.folding import Read, read_folded
from lmscale.exchange.import_config import read_source_config
from lmscale.exchange.import_files import SourceWeights, find_source_weights
from lmscale.exchange.peft_adapter import TheirAdapter, plan_adapters
from lmscale.exchange.peft_base import check_base, plan_as_base
from lmscale.exchange.plan_export import META, ExportPlan, check_found
from lmscale.exchange.rules import Rule
from lmscale.model.family import build_model_on
from lmscale.model.lora import read_adapter


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


def plan_adaptation(found: FoundRun, base_folder: Path) -> Adaptation:
    """What is written of a run's checkpoint beside a base. Raises ``ConfigError``,
    ``CheckpointError`` and ``DataError`` where that cannot be.
    """
    source, base = read_source_config(base_folder), find_source_weights(base_folder)
    check_found(found)
    plan = plan_as_base(found, source, base)
    whole = tuple(rule for rule in plan.rules if rule.name in found.manifest.parameters)
    check_base(found, plan, base)
    model = build_model_on(found.config.model, plan.sizes, device=META, dtype=torch.float32)
    adapters = plan_adapters(model, plan.rules)
    return Adaptation(found=found, plan=plan, adapters=adapters, whole=whole, base=base)
