"""Seconds of matrix products by their shapes: measured ones where there are some, else a roofline
with tiles.

A GPU deals the tiles of a result to its multiprocessors, wave after wave: a last wave that is not
full, and tiles that hang over the edge, cost as much as whole ones (NVIDIA, "Matrix Multiplication
Background User's Guide", tile and wave quantization). Long sums of small results are cut along k.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from lmscale.plan.calibration import interpolate
from lmscale.plan.devices import MEMORY_SHARE, Device

# Rows and columns of a tile, and what share of the best rate products in such tiles reach: smaller
# ones read more of their inputs for every sum. The larger are CUTLASS's usual ones for 16 bit; the
# shares of the same guide's figure of tile sizes, about.
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.95), (128, 64, 0.8), (64, 64, 0.6))
CUTS = (1, 2, 4, 8, 16)  # of k
FILL_ROWS = 96  # steps of k that pass before a tile's pipeline is full, and after: k / (k + this)
SUM_BYTES = 8  # written and read, in fp32, of every cut's results


class Product(NamedTuple):
    """[m, k] times [k, n]."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k


class Cost(NamedTuple):
    """Seconds of a device, and whether arithmetic or its memory takes them."""

    seconds: float
    is_memory_bound: bool


def product_cost(product: Product, precision: str, device: Device, sustained: float) -> Cost:
    """Of one product in a precision that the device has. ``sustained``: the share of what the best
    product reaches that is left when the whole device has been busy for minutes.
    """
    return _product_cost(product, precision, _Rates.of(device, precision, sustained))


class _Rates(NamedTuple):
    """What of a device a product depends on."""

    flops_per_second: float
    bytes_per_second: float
    units: int
    kernel_seconds: float

    @classmethod
    def of(cls, device: Device, precision: str, sustained: float) -> _Rates:
        peak = device.peak(precision) or device.peak("fp32")
        assert peak, f"{device.name} has no {precision}"
        return cls(
            flops_per_second=peak * device.product_share * sustained,
            bytes_per_second=device.memory_bytes_per_second * MEMORY_SHARE,
            units=device.units or 1,
            kernel_seconds=device.kernel_seconds,
        )


@functools.lru_cache(maxsize=4096)
def _product_cost(product: Product, precision: str, rates: _Rates) -> Cost:
    m, n, k = product
    itemsize = 4 if precision == "fp32" else 2
    memory = itemsize * (m * k + k * n + m * n) / rates.bytes_per_second
    if rates.units == 1:  # no tiles to be dealt
        compute = product.flops / rates.flops_per_second
    else:
        compute = min(_tiled(product, tile, cut, rates) for tile in TILES for cut in CUTS)
    return Cost(max(compute, memory) + rates.kernel_seconds, memory > compute)


def _tiled(product: Product, tile: tuple[int, int, float], cut: int, rates: _Rates) -> float:
    rows, columns, share = tile
    m, n, k = product
    tiles = math.ceil(m / rows) * math.ceil(n / columns) * cut
    waves = math.ceil(tiles / rates.units)
    depth = k / cut
    of_tile = 2.0 * rows * columns * depth / (rates.flops_per_second / rates.units * share)
    filled = depth / (depth + FILL_ROWS)
    sums = 0.0 if cut == 1 else SUM_BYTES * m * n * cut / rates.bytes_per_second
    return waves * of_tile / filled + sums


def measured_seconds(product: Product, precision: str, device: Device, *, backward: bool) -> float:
    """Of a linear layer's product, or of both its gradients, between the measured shapes.

    0 where none of the precision was measured.
    """
    measured = device.measured
    points = [] if measured is None else [p for p in measured.products if p.precision == precision]
    if not points:
        return 0.0
    return interpolate(
        {(p.m, p.n, p.k): p.backward_seconds if backward else p.forward_seconds for p in points},
        product,
    )
