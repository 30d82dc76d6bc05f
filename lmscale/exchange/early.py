"""What an export is refused for before torch and the libraries are loaded: its place, its options,
its checkpoint, and a model that has no such format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lmscale.config.hf.llama_cpp import choose_llama_cpp
from lmscale.config.hf.target import plan_target
from lmscale.errors import ConfigError
from lmscale.exchange.exported import HEAD_BYTES, MARK, ExportRequest, is_own_file
from lmscale.exchange.their_library import check_transformers
from lmscale.files.extras import install_extra
from lmscale.files.output_folder import check_output, check_output_file

Format = Literal["hf", "peft", "gguf"]
HF_DTYPES = ("fp32", "bf16", "fp16")


def check_hf(request: ExportRequest) -> None:
    """Raise the error of what cannot become a folder for transformers."""
    check_output(request.out, mark=MARK, force=request.force, source=request.folder)
    if request.dtype not in HF_DTYPES:
        raise ConfigError(
            f"--dtype {request.dtype} is of GGUF files: add --format gguf, or take "
            f"{', '.join(HF_DTYPES)}."
        )
    check_transformers()
    plan_target(request.found.config)


def check_peft(request: ExportRequest) -> None:
    """Raise the error of what cannot become a folder of adapters."""
    problems = []
    if request.base is None:
        problems.append(
            "--format peft needs --base DIR, the folder of the model that the run adapts. Without "
            "one, export that model's run first: lmscale export RUN --out DIR"
        )
    elif request.base.resolve() == request.out.resolve():
        problems.append(f"--out {request.out} is the base, which it would replace. Name another.")
    if request.dtype != "fp32":
        problems.append(f"--format peft writes fp32, not {request.dtype}: leave --dtype out.")
    if problems:
        raise ConfigError(problems)
    check_output(request.out, mark=MARK, force=request.force, source=request.folder)
    check_transformers()
    if request.found.config.model.lora.rank == 0:
        raise ConfigError(
            f"{request.folder} has no adapters (model.lora), which --format peft writes. Leave it "
            "out to export the model."
        )


def check_gguf(request: ExportRequest) -> None:
    """Raise the error of what cannot become a file for llama.cpp."""
    check_output_file(request.out, is_ours=_is_ours, force=request.force, source=request.folder)
    if find_spec("gguf") is None:
        raise ConfigError(
            f"Writing a GGUF file needs the package gguf: {install_extra('gguf')} in the clone."
        )
    target = plan_target(request.found.config)
    choose_llama_cpp(target.architecture.model_type, target.section, target.sizes)


def _is_ours(path: Path) -> bool:
    with open(path, "rb") as file:
        return is_own_file(file.read(HEAD_BYTES))


CHECKS: Mapping[Format, Callable[[ExportRequest], None]] = {
    "hf": check_hf,
    "peft": check_peft,
    "gguf": check_gguf,
}


def check_export(format: Format, request: ExportRequest) -> None:
    """Find the checkpoint of ``request``, and raise whatever is known to be wrong with it all."""
    with request.bar("looking at the checkpoint", None, ""):
        CHECKS[format](request)
