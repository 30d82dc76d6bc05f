"""The one table of accelerators: figures of their makers' data sheets, by the names drivers give.

Everything that needs a device's peak, memory or links reads them here: MFU (``device.py``),
`lmscale init` and `lmscale plan`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Accelerator(NamedTuple):
    """What one device is by its maker's data sheet; None where no sheet says it.

    Peaks are dense, without sparsity: TFLOP/s with 16-bit inputs and fp32 accumulation (bf16 and
    fp16 alike unless ``has_bf16`` is False), in fp32 outside the tensor cores, because lmscale
    leaves TF32 off, and in fp8.
    """

    key: str  # what a person types
    pattern: str  # of the name that the driver gives
    peak_16_bit: float
    peak_fp32: float | None
    peak_fp8: float | None
    memory_gib: int | None  # as sold: 80 is 80 GiB, of which the driver keeps a part
    memory_gb_per_second: float | None
    units: int | None  # streaming multiprocessors, or compute units
    link_gb_per_second: float | None  # to the others of its node, in one direction
    watts: float | None
    source: str
    has_bf16: bool = True


# The first pattern that matches a device's name counts, so the narrower ones stand first. Links:
# NVLink 2 to 5 are 150, 300, 450 and 900 GB/s in one direction (half of what the sheets call
# bidirectional), PCIe 4 and 5 with 16 lanes 31 and 63, xGMI of MI300X 448 to its seven peers.
# fmt: off
_ROWS: list[tuple[Any, ...]] = [
    # key, pattern, 16 bit, fp32, fp8, GiB, GB/s, units, link, watts, source
    ("gb200", r"GB200", 2500.0, 80.0, 5000.0, 186, 8000.0, 148, 900.0, 1200.0,
     "NVIDIA GB200 NVL72: 5,000 sparse a GPU"),
    ("gb300", r"GB300", 2500.0, None, 5000.0, 279, 8000.0, 148, 900.0, 1400.0,
     "NVIDIA GB300 NVL72"),
    ("b300", r"\bB300", 2250.0, None, 4500.0, 268, 8000.0, 148, 900.0, 1100.0,
     "NVIDIA HGX B300"),
    ("b200", r"\bB200", 2250.0, 80.0, 4500.0, 180, 8000.0, 148, 900.0, 1000.0,
     "NVIDIA HGX B200: 4,500 sparse"),
    ("b100", r"\bB100", 1750.0, 80.0, 3500.0, 180, 8000.0, 148, 900.0, 700.0,
     "NVIDIA HGX B100: 3,500 sparse"),
    ("h200-nvl", r"\bH200.*NVL", 835.0, 67.0, 1671.0, 141, 4800.0, 132, 450.0, 600.0,
     "H200 data sheet: NVL, 1,671 sparse"),
    ("gh200", r"\bGH200", 989.0, 67.0, 1979.0, 96, 4000.0, 132, 450.0, 900.0,
     "GH200 data sheet: 1,979 sparse, with 96 GB of HBM3"),
    ("h200", r"\bH200", 989.0, 67.0, 1979.0, 141, 4800.0, 132, 450.0, 700.0,
     "H200 data sheet: SXM, 1,979 sparse"),
    ("h100-pcie", r"\bH100.*PCIe", 756.0, 51.0, 1513.0, 80, 2000.0, 114, 63.0, 350.0,
     "H100 data sheet: PCIe, 1,513 sparse"),
    ("h100-nvl", r"\bH100.*NVL", 835.0, 67.0, 1671.0, 94, 3900.0, 132, 300.0, 400.0,
     "H100 data sheet: NVL, 1,671 sparse a GPU"),
    ("h800", r"\bH800", 989.0, 67.0, 1979.0, 80, 3350.0, 132, 200.0, 700.0,
     "H100 data sheet: SXM; NVLink cut to 400 GB/s in both directions"),
    ("h100-80gb", r"\bH100", 989.0, 67.0, 1979.0, 80, 3350.0, 132, 450.0, 700.0,
     "H100 data sheet: SXM, 1,979 sparse"),
    ("h20", r"\bH20\b", 148.0, None, 296.0, 96, 4000.0, 78, 450.0, 400.0,
     "NVIDIA H20"),
    ("a100-40gb", r"\bA100.*40", 312.0, 19.5, None, 40, 1555.0, 108, 300.0, 400.0,
     "A100 data sheet: SXM, 40 GB"),
    ("a100-pcie", r"\bA100.*PCIe", 312.0, 19.5, None, 80, 1935.0, 108, 31.0, 300.0,
     "A100 data sheet: PCIe, 80 GB"),
    ("a800", r"\bA800", 312.0, 19.5, None, 80, 2039.0, 108, 200.0, 400.0,
     "A100 data sheet: SXM; NVLink cut to 400 GB/s in both directions"),
    ("a100-80gb", r"\bA100", 312.0, 19.5, None, 80, 2039.0, 108, 300.0, 400.0,
     "A100 data sheet: SXM, 80 GB"),
    ("a6000", r"RTX A6000", 154.8, 38.7, None, 48, 768.0, 84, 31.0, 300.0,
     "RTX A6000 data sheet: 309.7 sparse"),
    ("a40", r"\bA40\b", 149.7, 37.4, None, 48, 696.0, 84, 31.0, 300.0,
     "A40 data sheet"),
    ("a30", r"\bA30\b", 165.0, 10.3, None, 24, 933.0, 56, 31.0, 165.0,
     "A30 data sheet"),
    ("a10g", r"\bA10G", 70.0, None, None, 24, 600.0, 80, 31.0, 300.0,
     "AWS: 140 sparse"),
    ("a10", r"\bA10\b", 125.0, 31.2, None, 24, 600.0, 72, 31.0, 150.0,
     "A10 data sheet"),
    ("l40s", r"\bL40S", 362.0, 91.6, 733.0, 48, 864.0, 142, 31.0, 350.0,
     "L40S data sheet: 733 sparse"),
    ("l40", r"\bL40\b", 181.0, 90.5, 362.0, 48, 864.0, 142, 31.0, 300.0,
     "L40 data sheet: 362 sparse"),
    ("l4", r"\bL4\b", 121.0, 30.3, 242.0, 24, 300.0, 58, 31.0, 72.0,
     "L4 data sheet: 242 sparse"),
    ("rtx-6000-ada", r"RTX 6000 Ada", 182.1, 91.1, 364.2, 48, 960.0, 142, 31.0, 300.0,
     "Ada white paper, fp32 accumulation"),
    ("rtx-5090", r"RTX 5090", 209.5, 104.8, 419.0, 32, 1792.0, 170, 63.0, 575.0,
     "Blackwell RTX white paper, fp32 accumulation"),
    ("rtx-4090", r"RTX 4090", 165.2, 82.6, 330.3, 24, 1008.0, 128, 31.0, 450.0,
     "Ada white paper, appendix A, fp32 accumulation"),
    ("rtx-3090", r"RTX 3090\b", 71.0, 35.6, None, 24, 936.0, 82, 31.0, 350.0,
     "GA102 white paper, fp32 accumulation"),
    ("mi355x", r"\bMI355X", 2500.0, 157.3, 5000.0, 288, 8000.0, 256, 537.0, 1400.0,
     "AMD MI355X data sheet"),
    ("mi325x", r"\bMI325X", 1307.0, 163.4, 2615.0, 256, 6000.0, 304, 448.0, 1000.0,
     "AMD MI325X data sheet"),
    ("mi300x", r"\bMI300X", 1307.0, 163.4, 2615.0, 192, 5300.0, 304, 448.0, 750.0,
     "AMD MI300X data sheet"),
    ("mi250x", r"\bMI250X", 191.5, 23.9, None, 64, 1600.0, 110, 175.0, 280.0,
     "AMD MI250X data sheet: 383, of both of its dies, each of which is a device to torch"),
    ("v100-16gb", r"\bV100.*16", 125.0, 15.7, None, 16, 900.0, 80, 150.0, 300.0,
     "V100 data sheet: SXM2, 16 GB", False),
    ("v100-32gb", r"\bV100", 125.0, 15.7, None, 32, 900.0, 80, 150.0, 300.0,
     "V100 data sheet: SXM2 (PCIe: 112)", False),
    ("t4", r"\bT4\b", 65.0, 8.1, None, 16, 320.0, 40, 16.0, 70.0,
     "T4 data sheet", False),
]
# fmt: on
ACCELERATORS = tuple(Accelerator(*row) for row in _ROWS)
# What people call the usual variant of a name.
_SHORT = {"h100": "h100-80gb", "a100": "a100-80gb", "v100": "v100-32gb"}


def find_accelerator(name: str) -> Accelerator | None:
    """The row of a key, such as ``h100-80gb`` or ``h100``, or of a name that a driver gives."""
    key = "-".join(name.lower().split())
    key = _SHORT.get(key, key)
    for row in ACCELERATORS:
        if key == row.key:
            return row
    return next(
        (row for row in ACCELERATORS if re.search(rf"{row.pattern}(?!\d)", name, re.I)), None
    )
