"""What an export is asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lmscale.config.training import Weights
from lmscale.evaluation.found import FoundRun, find_run

if TYPE_CHECKING:
    from lmscale.exchange.parity import Parity
    from lmscale.exchange.plan_export import ExportPlan
    from lmscale.exchange.tokenizer_check import TokenizerCheck
    from lmscale.exchange.write_tensors import Written

MARK = "lmscale_export.json"
"""What says that lmscale wrote a folder, and of what."""
MARK_OF_FILE, HEAD_BYTES = b"lmscale.checkpoint", 4096
"""The same of a GGUF file: a key near its beginning, before the hash of the checkpoint."""
_GGUF, _TYPE_OF_FILE = b"GGUF", b"general.file_type"
Dtype = Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"]
Verify = Literal["logits", "tensors"]
Bar = Callable[[str, float | None, str], AbstractContextManager[Callable[[float], None]]]


def is_own_file(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a GGUF file as lmscale wrote it.

    What llama-quantize makes of one has our key as well, but the type of its weights behind all.
    """
    keys = (_TYPE_OF_FILE, MARK_OF_FILE)
    at = [head.find(len(key).to_bytes(8, "little") + key) for key in keys]
    return head.startswith(_GGUF) and 0 < at[0] < at[1]


def no_bar(what: str, total: float | None, unit: str) -> Any:
    return nullcontext(lambda amount: None)


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is asked for."""

    folder: Path
    out: Path
    base: Path | None = None
    """Of adapters: the folder of the model that the run adapts, as transformers loads it."""
    step: int | None = None
    weights: Weights | None = None
    dtype: Dtype = "fp32"
    keeps_embeddings: bool = False
    """Of gguf in 8 or 4 bits: the embedding and the head stay fp16."""
    verify: Verify | None = None
    """None: logits, where the memory is enough for the model in fp32; else tensors."""
    max_shard_bytes: int = 5 * 10**9
    force: bool = False
    bar: Bar = no_bar

    @cached_property
    def found(self) -> FoundRun:
        """The checkpoint, verified once."""
        return find_run(self.folder, step=self.step, weights=self.weights)


class Report(NamedTuple):
    """What an export says of itself, whatever its format."""

    facts: Mapping[str, Any]
    """For programs, as JSON."""
    rows: Sequence[tuple[str, str]]
    """For people: name, text."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """How an export was verified."""

    tensors: int
    """That lie in the files as in the checkpoint."""
    parity: Parity | None = None
    rounding: float | None = None
    """How much the dtype of the files moves the logits, by norm."""
    why_not: str = ""
    """Why no logits were compared; empty: they were."""

    def describe(self) -> Iterator[str]:
        """Sentences for people."""
        if self.parity is None:
            yield (
                f"All {self.tensors} tensors in the files are those of the checkpoint, and have "
                f"the names and shapes of transformers' class. Logits were not compared: "
                f"{self.why_not}."
            )
            return
        parity = self.parity
        yield parity.describe("transformers, loading this folder in fp32,")
        if parity.written:
            ties = f", {parity.ties} of them ties within rounding" if parity.ties else ""
            yield (
                f"Both choose the same {parity.written} tokens when they go on greedily from "
                f"{parity.continued} of them{ties}."
            )
        if self.rounding is not None:
            yield (
                "Both had the weights as they are in the files; their rounding alone moves the "
                f"logits by {self.rounding:.1e}."
            )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    request: ExportRequest
    found: FoundRun
    plan: ExportPlan
    files: tuple[Written, ...]
    check: Check
    tokenizer: TokenizerCheck
    notes: tuple[str, ...] = ()
    """What somebody who uses it should know."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def parameters(self) -> int:
        return sum(prod(rule.shape) for rule in self.plan.rules)


def describe_found(found: FoundRun) -> dict[str, Any]:
    """Of what an export is, whatever its format; for programs."""
    return {
        "run": found.config.run.name,
        "step": found.manifest.step,
        "checkpoint": found.manifest.hash,
        "weights": found.weights,
    }


def describe(exported: Exported) -> dict[str, Any]:
    """What ``lmscale_export.json`` says."""
    found, plan = exported.found, exported.plan
    return {
        "format": "hf",
        **describe_found(found),
        "tokenizer": found.tokenizer.fingerprint,
        "model_type": plan.architecture.model_type,
        "class": plan.class_name,
        "dtype": exported.request.dtype,
        "left_out": list(plan.left_out),
        "files": {file.name: [file.bytes, file.sha256] for file in exported.files},
        "verified": asdict(exported.check),
        "tokenizer_differs": [exported.tokenizer.differing, exported.tokenizer.texts],
    }
