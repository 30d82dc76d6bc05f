"""Part ``machine``: what is there, and whether anything that lmscale imports is missing."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping

import torch
from gpu_check import Bench, Check, expect, gib

from lmscale.ranks.device import device_name, peak_tflops
from lmscale.runs.environment import installed_version

# Module → the wheel that brings it: all that the checks import beside torch, numpy included.
NEEDED = {
    "annotated_types": "annotated-types",
    "cpuinfo": "py-cpuinfo",
    "deepspeed": "deepspeed",
    "einops": "einops",
    "filelock": "filelock",
    "hjson": "hjson",
    "msgpack": "msgpack",
    "numpy": "numpy",
    "packaging": "packaging",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "rich": "rich",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "typing_inspection": "typing-inspection",
    "xxhash": "xxhash",
    "yaml": "PyYAML",
}


NEEDED_ON_A_GPU = {"pynvml": "nvidia-ml-py"}


def find_missing(needed: Mapping[str, str]) -> list[str]:
    """The wheels that are not there."""
    return [wheel for module, wheel in needed.items() if importlib.util.find_spec(module) is None]


def check_packages(bench: Bench) -> str:
    missing = find_missing(NEEDED | NEEDED_ON_A_GPU if bench.is_cuda else NEEDED)
    expect(not missing, f"missing: {' '.join(missing)}; see benchmarks/README.md")
    names = ("torch", "triton", "deepspeed", "pydantic", "safetensors", "numpy")
    return ", ".join(f"{name} {installed_version(name) or 'none'}" for name in names)


def check_device(bench: Bench) -> str:
    name = device_name(bench.device)
    bench.need_gpu()
    from torch.cuda import nccl

    properties = torch.cuda.get_device_properties(bench.device)
    peak = peak_tflops(name, "bf16")
    expect(peak is not None, f"{name} is not in ranks/device.py's table, so there is no MFU")
    nccl_version = ".".join(map(str, nccl.version()))
    return (
        f"{name}, {gib(properties.total_memory)}, {properties.multi_processor_count} SMs, "
        f"CUDA {torch.version.cuda}, NCCL {nccl_version}, peak {peak:g} TFLOP/s bf16"
    )


def check_compiler(bench: Bench) -> str:
    """triton links a small C file for every kernel; FlexAttention and compile need it."""
    bench.need_gpu()
    compiler = next((found for name in ("gcc", "cc", "clang") if (found := shutil.which(name))), "")
    expect(compiler != "", "no C compiler, which triton needs; without: model.attention=sdpa")
    return compiler


CHECKS = (
    Check(name="packages", run=check_packages),
    Check(name="device", run=check_device),
    Check(name="C compiler for triton", run=check_compiler),
)
