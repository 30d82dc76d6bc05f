"""Section ``export``: what others can load of a run, and whether it is written while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, NonNegativeInt

from lmscale.config.base import Place, Section


class ExportConfig(Section):
    """A run's checkpoints in the formats of other programs."""

    format: Literal["hf", "gguf", "peft"] | None = None
    """``hf``: a folder for transformers; ``gguf``: a file for llama.cpp; ``peft``: the adapters of
    ``model.lora`` for PEFT (``lmscale export``). A model that transformers, or llama.cpp, cannot
    compute is then refused before it is trained. Default: none.
    """
    every_steps: NonNegativeInt = 0
    """Checkpoints at multiples of this, and the last one, are exported by a process of low priority
    beside rank 0 as soon as they are committed. One that is late is left out for a newer one. 0:
    none is.
    """
    folder: Place = ""
    """Where they are written, in a folder of the run's name, as ``step-000001000``, of gguf
    ``step-000001000.gguf``: a folder, or a URL (``s3://bucket/exports``), for which each is made
    and verified in RUN/exports. Runs that share it need names of their own. Default: RUN/exports,
    and no folder of the name in it.
    """
    keep: NonNegativeInt = 0
    """So many of those that the run has written there stay, the newest; 0: all."""
    base: Place = ""
    """Of peft: the folder of the model that the run adapts (``lmscale export --base``)."""
    dtype: Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"] = "fp32"
    """Of the weights in the files; ``q8_0`` and ``q4_0`` are of gguf alone."""
    finish_minutes: float = Field(default=60.0, ge=0, le=1e6)
    """How long a run that has done its last step waits for the last export."""

    def find_problems(self) -> Iterator[str]:
        if self.every_steps and not self.format:
            yield f"every_steps = {self.every_steps} needs a format: hf, gguf or peft"
        if self.dtype in ("q8_0", "q4_0") and self.format != "gguf":
            yield f"dtype = {self.dtype} is of format gguf alone"
        if (self.format == "peft") != bool(self.base):
            yield (
                f"format = {self.format!r} with base = {self.base!r}: format peft needs the base's "
                "folder, and no other has one"
            )
        if self.format == "peft" and self.dtype != "fp32":
            yield f"dtype = {self.dtype!r}: format peft writes fp32"
        if self.folder.partition("://")[0] in ("http", "https"):
            yield f"folder = {self.folder!r}: nothing can be written there; take s3:// or gs://"
