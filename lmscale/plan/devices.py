"""The devices that a plan is made for: by name, or from a file of their figures.

The makers' figures stand in ``lmscale/ranks/accelerators.py``; here is what a plan needs beside
them, each with its source, and what ``lmscale plan calibrate`` has measured.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from lmscale.config import RunConfig
from lmscale.config.base import MAX_BYTES, Section
from lmscale.config.load import parse_yaml, read_text, validate_tree
from lmscale.errors import ConfigError
from lmscale.plan.calibration import Calibration
from lmscale.ranks.accelerators import ACCELERATORS, Accelerator, find_accelerator
from lmscale.ranks.device import num_cores, usual_precision

CPU = "cpu"
Precision = Literal["bf16", "fp16", "fp32", "fp8"]
Rate = Annotated[float, Field(gt=0, le=1e21)]  # FLOP/s or bytes/s
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1)]

# Share of the peak that the best large 16-bit product reaches: Bekman, "ML Engineering", table of
# maximum achievable matmul FLOPS (github.com/stas00/ml-engineering, compute/accelerator, as of
# 2025), B200 to MI250X; those that the table lacks are taken to be like the H100.
_PRODUCT_SHARES = {
    "gb200": 0.729,
    "b300": 0.786,
    "b200": 0.776,
    "gh200": 0.838,
    "h200": 0.803,
    "h100-80gb": 0.803,
    "a100-pcie": 0.811,
    "a100-40gb": 0.869,
    "a100-80gb": 0.869,
    "mi355x": 0.626,
    "mi325x": 0.600,
    "mi300x": 0.600,
    "mi250x": 0.767,
}
_USUAL_PRODUCT_SHARE = 0.803
# The same of fused attention, both passes, of long sequences: Dao 2023 (FlashAttention-2, figures 4
# to 7: 0.45 to 0.6 on A100, 0.25 to 0.34 on H100 by the same kernels).
_ATTENTION_SHARES = {"a": 0.55, "v": 0.3, "h": 0.34, "g": 0.34, "b": 0.25, "m": 0.25}
_USUAL_ATTENTION_SHARE = 0.4
# Share of the data sheet's bandwidth that a kernel reaches which only reads and writes: about 0.9
# of HBM in BabelStream (github.com/UoB-HPC/BabelStream), on A100 and H100.
MEMORY_SHARE = 0.9
# What an operator that is not compiled with others costs its host thread: torch's dispatch,
# autograd and cudaLaunchKernel, which alone takes 2 to 4 µs (NVIDIA, "Getting Started with CUDA
# Graphs", 2019: 3.8 µs a kernel where launches overlap, of which the kernel runs 2.9). To be
# measured: lmscale plan calibrate.
LAUNCH_SECONDS = 8e-6
KERNEL_SECONDS = 3e-6
# What the driver, torch's libraries and NCCL's buffers take before the first tensor: some 0.5 GiB
# each of CUDA's context with cuBLAS and of NCCL, as nvidia-smi shows them beside torch's own count.
CONTEXT_BYTES = 2**30
# A data sheet's 80 GB is a little less than 80 GiB to torch: 79.1 to 79.6 of an A100 or H100.
MEMORY_SEEN = 0.99
# Share of a link that a collective's ring reaches: NCCL's own tuning takes 20 GB/s of a link of 25
# for A100's NVLink 3 and 20.6 for H100's NVLink 4 (src/graph/topo.h), 0.8; measured 235 of 300
# GB/s on 8 A100 and 368 of 450 on 8 H200 without SHARP (ML Engineering, network/benchmarks).
LINK_SHARE = 0.8
# A hop of a ring: NCCL's tuning for the protocol Simple, within and between nodes
# (src/graph/tuning.cc: 3.4 and 14 µs), and before the first hop 8.4 µs.
INTRA_LATENCY_SECONDS, INTER_LATENCY_SECONDS, COLLECTIVE_SECONDS = 3.4e-6, 14e-6, 8.4e-6
# Bytes a second of a device's share of its node's network, in one direction: 400 Gbit/s of NDR
# InfiniBand a GPU in DGX and HGX H100 and later and in MI300X nodes, 200 of HDR in DGX A100, 12.5
# in DGX-1 with V100 (4 × 100 for 8); for the rest 100 Gbit/s a node of 8.
_NETWORK = {"h": 50e9, "b": 50e9, "g": 50e9, "m": 50e9, "a100": 25e9, "a800": 25e9, "v100": 6.25e9}
_USUAL_NETWORK = 100e9 / 8 / 8
# Share of the network's rate that collectives reach: taken to be like that of NVLink and somewhat
# better, as a large packet's header is a small part of it. No source.
NETWORK_SHARE = 0.92


class Device(Section):
    """One accelerator, or the part of a CPU that one rank has. The fields are the keys of a file
    for ``--gpu FILE``.
    """

    name: str
    kind: Literal["gpu", "cpu"] = "gpu"
    memory_bytes: Annotated[int, Field(gt=0, le=MAX_BYTES)]
    """All that the driver shows, which ``context_bytes`` is a part of."""
    peak_flops: dict[Precision, Rate]
    """Precision → FLOP/s, dense, of the data sheet: what MFU refers to."""
    product_share: Share = _USUAL_PRODUCT_SHARE
    """Share of the peak that the best large product reaches."""
    attention_share: Share = _USUAL_ATTENTION_SHARE
    """Share of the peak that a fused kernel of attention reaches, both passes together."""
    memory_bytes_per_second: Rate
    """Of the data sheet, reading and writing together."""
    units: PositiveInt | None = None
    """Streaming multiprocessors or compute units, over which a product's tiles are dealt."""
    launch_seconds: Seconds = LAUNCH_SECONDS
    """Of the host, for every operator that is not compiled with others."""
    kernel_seconds: Seconds = KERNEL_SECONDS
    """Of the device, for the smallest kernel."""
    context_bytes: Annotated[int, Field(ge=0, le=MAX_BYTES)] = CONTEXT_BYTES
    """CUDA's context, libraries and NCCL's buffers."""
    watts: float | None = Field(default=None, gt=0, le=1e5)
    """At most, by the data sheet."""
    link_bytes_per_second: float | None = Field(default=None, gt=0, le=1e21)
    """To the other devices of its node, in one direction, by the data sheet."""
    network_bytes_per_second: Rate = _USUAL_NETWORK
    """Its share of its node's network, in one direction."""
    source: str = "a file"
    """Where the figures are from."""
    measured: Calibration | None = None
    """What ``lmscale plan calibrate`` has measured, which then counts before the figures above."""

    @property
    def usable_bytes(self) -> int:
        return self.memory_bytes - self.context_bytes

    def peak(self, precision: str) -> float | None:
        """FLOP/s by the data sheet; None where the device has no such precision."""
        return self.peak_flops.get(precision)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a job gets."""

    device: Device
    nodes: int
    devices_per_node: int
    intra_bytes_per_second: float
    """What a device sends to a neighbour of its node in a collective."""
    inter_bytes_per_second: float
    """A device's share of what its node sends to others."""
    intra_latency_seconds: float = INTRA_LATENCY_SECONDS
    inter_latency_seconds: float = INTER_LATENCY_SECONDS

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices_per_node


def plan_machine(device: Device, *, nodes: int = 1, devices_per_node: int = 1) -> Machine:
    """So many of a device, with the links of its usual node. CPU ranks share a node's memory."""
    if device.kind == CPU and device.measured is None:
        share = {key: rate / devices_per_node for key, rate in device.peak_flops.items()}
        device = device.model_copy(
            update={
                "memory_bytes": device.memory_bytes // devices_per_node,
                "memory_bytes_per_second": device.memory_bytes_per_second / devices_per_node,
                "peak_flops": share,
            }
        )
    link = device.link_bytes_per_second or device.network_bytes_per_second
    return Machine(
        device=device,
        nodes=nodes,
        devices_per_node=devices_per_node,
        intra_bytes_per_second=link * LINK_SHARE,
        inter_bytes_per_second=device.network_bytes_per_second * NETWORK_SHARE,
    )


def find_device(name: str) -> Device:
    """A device by its name (``h100-80gb``, ``NVIDIA H200``, ``cpu``), or from a file of its
    figures. Raises ``ConfigError``.
    """
    if name == CPU:
        return _this_cpu()
    is_file = name.endswith((".yaml", ".yml", ".json")) or os.sep in name or Path(name).is_file()
    if is_file:
        return load_device(Path(name))
    row = find_accelerator(name)
    if row is None or row.memory_gib is None or row.memory_gb_per_second is None:
        known = ", ".join(each.key for each in ACCELERATORS if each.memory_gib)
        raise ConfigError(
            f"--gpu {name}: it is not in the table of devices, which has {known} and {CPU}. Give "
            "one of them, or a file of its figures (docs/planning.md)."
        )
    return describe_accelerator(row)


def load_device(path: Path) -> Device:
    """A device from a YAML or JSON file, such as ``lmscale plan calibrate`` writes."""
    return validate_tree(Device, parse_yaml(read_text(path), str(path)), name=str(path))


def describe_accelerator(row: Accelerator) -> Device:
    """The device of a row of the table, with what is taken of it in general."""
    assert row.memory_gib and row.memory_gb_per_second, f"{row.key}: no figures of its memory"
    peaks: dict[Precision, float | None] = {
        "fp16": row.peak_16_bit,
        "fp32": row.peak_fp32,
        "fp8": row.peak_fp8,
    }
    peaks |= {"bf16": row.peak_16_bit} if row.has_bf16 else {}
    keys = (row.key, row.key.partition("-")[0], row.key[0])
    network = next((_NETWORK[key] for key in keys if key in _NETWORK), _USUAL_NETWORK)
    return Device(
        name=row.key,
        memory_bytes=int(row.memory_gib * 2**30 * MEMORY_SEEN),
        peak_flops={key: rate * 1e12 for key, rate in peaks.items() if rate},
        product_share=_PRODUCT_SHARES.get(row.key, _USUAL_PRODUCT_SHARE),
        attention_share=_ATTENTION_SHARES.get(row.key[0], _USUAL_ATTENTION_SHARE),
        memory_bytes_per_second=row.memory_gb_per_second * 1e9,
        units=row.units,
        watts=row.watts,
        link_bytes_per_second=row.link_gb_per_second and row.link_gb_per_second * 1e9,
        network_bytes_per_second=network,
        source=row.source,
    )


# One core of a server CPU of the last ten years, about: FLOP/s with AVX2 or AVX-512 in fp32 and, of
# a CPU with bf16 units, in bf16; bytes a second of its share of the memory. Nobody's figures: a
# plan for a CPU is worth little before `lmscale plan calibrate`.
_CORE_FLOPS: dict[Precision, float] = {"fp32": 60e9, "bf16": 120e9}
_CORE_BYTES_PER_SECOND = 8e9
_CPU_WATTS = 10.0  # a core


def _this_cpu() -> Device:
    """This machine's CPU, of which nothing was measured; all of its cores."""
    cores = num_cores()
    peaks: dict[Precision, float] = {key: cores * rate for key, rate in _CORE_FLOPS.items()}
    if usual_precision("") == "fp32":
        del peaks["bf16"]
    return Device(
        name=CPU,
        kind="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        peak_flops=peaks,
        product_share=0.6,
        memory_bytes_per_second=_CORE_BYTES_PER_SECOND * cores,
        launch_seconds=LAUNCH_SECONDS,
        kernel_seconds=0.0,
        context_bytes=0,
        watts=_CPU_WATTS * cores,
        link_bytes_per_second=2e9,  # gloo through the memory of one node
        source="a guess by the number of cores; measure it: lmscale plan calibrate",
    )


def settle_precision(config: RunConfig, device: Device) -> RunConfig:
    """The configuration with what ``engine.precision: auto`` will be on this device
    (``ranks/precision.py`` asks the devices themselves).
    """
    if config.engine.precision != "auto":
        return config
    has_bf16 = device.peak("bf16") is not None
    if device.kind == CPU:
        has_bf16 = (device.peak("bf16") or 0.0) > (device.peak("fp32") or 0.0)
    precision = "bf16" if has_bf16 else "fp32"
    engine = config.engine.model_copy(update={"precision": precision})
    return config.model_copy(update={"engine": engine})
