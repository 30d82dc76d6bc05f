"""What an export is asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lmscale.config.training import Weights
from lmscale.evaluation.run import FoundRun
from lmscale.exchange.parity import Parity
from lmscale.exchange.plan_export import ExportPlan
from lmscale.exchange.write_tensors import Written

MARK = "lmscale_export.json"
"""What says that lmscale wrote a folder, and of what."""
Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Bar = Callable[[str, float | None, str], AbstractContextManager[Callable[[float], None]]]


def no_bar(what: str, total: float | None, unit: str) -> Any:
    return nullcontext(lambda amount: None)


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is asked for."""

    folder: Path
    out: Path
    step: int | None = None
    weights: Weights | None = None
    dtype: Dtype = "fp32"
    max_shard_bytes: int = 5 * 10**9
    force: bool = False
    bar: Bar = no_bar


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    request: ExportRequest
    found: FoundRun
    plan: ExportPlan
    files: tuple[Written, ...]
    tensors: int
    parity: Parity

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def describe(exported: Exported) -> dict[str, Any]:
    """What ``lmscale_export.json`` says."""
    found, plan = exported.found, exported.plan
    return {
        "format": "hf",
        "run": found.config.run.name,
        "step": found.manifest.step,
        "checkpoint": found.manifest.hash,
        "weights": found.weights,
        "tokenizer": found.tokenizer.fingerprint,
        "model_type": plan.architecture.model_type,
        "class": plan.class_name,
        "dtype": exported.request.dtype,
        "left_out": list(plan.left_out),
        "files": {file.name: [file.bytes, file.sha256] for file in exported.files},
        "verified": vars(exported.parity),
    }
