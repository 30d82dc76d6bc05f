"""Seconds of an operator on a device: the roofline of each, by what bounds it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lmscale.plan.devices import MEMORY_SHARE, Device
from lmscale.plan.efficiency import EFFICIENCY, Efficiency
from lmscale.plan.operations import Operation
from lmscale.plan.products import Product, product_cost


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds by what they are spent on. The host's run beside the device's."""

    products: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    """Reading and writing: pointwise operators, and products that wait for their weights."""
    launches: float = 0.0
    """Of the host, which calls the operators one by one."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in _FIELDS})

    def __mul__(self, times: float) -> Spent:
        return Spent(**{f.name: getattr(self, f.name) * times for f in _FIELDS})

    @property
    def device_seconds(self) -> float:
        return self.products + self.attention + self.memory

    @property
    def seconds(self) -> float:
        """Whichever takes longer, the device or the host that feeds it."""
        return max(self.device_seconds, self.launches)


_FIELDS = fields(Spent)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where operators run, and how."""

    device: Device
    precision: str
    is_compiled: bool
    efficiency: Efficiency = EFFICIENCY

    @property
    def bytes_per_second(self) -> float:
        return self.device.memory_bytes_per_second * MEMORY_SHARE


def operator_time(operation: Operation, where: Surroundings, *, backward: bool) -> Spent:
    """Of one of the ``times``."""
    launches = operation.backward_launches if backward else operation.launches
    if operation.kind == "product":
        spent = _product(operation, where, backward=backward)
    elif operation.kind == "attention":
        spent = _attention(operation, where, backward=backward)
    else:
        return _pointwise(operation, where, backward=backward)
    host = launches * where.device.launch_seconds
    return spent + Spent(launches=host)


def _product(operation: Operation, where: Surroundings, *, backward: bool) -> Spent:
    """Forward [m, k] × [k, n]; backward [m, n] × [n, k] for the inputs and [n, m] × [m, k] for the
    weights, and of what is computed again the first once more.
    """
    m, n, k = operation.m, operation.n, operation.k
    times = round(operation.backward_flops / operation.flops) if operation.flops else 0
    shapes = [(m, n, k)] if not backward else [(m, k, n), (n, k, m), (m, n, k)][:times]
    spent = Spent()
    for shape in shapes:
        cost = product_cost(
            Product(*shape), where.precision, where.device, where.efficiency.sustained
        )
        key = "memory" if cost.is_memory_bound else "products"
        spent += Spent(**{key: cost.seconds})
    return spent


def _attention(operation: Operation, where: Surroundings, *, backward: bool) -> Spent:
    flops = operation.backward_flops if backward else operation.flops
    moved = operation.backward_moved_bytes if backward else operation.moved_bytes
    launches = operation.backward_launches if backward else operation.launches
    peak = where.device.peak(where.precision) or where.device.peak("fp32") or 1.0
    rate = peak * where.device.attention_share * where.efficiency.attention
    floor = launches * where.device.kernel_seconds
    if launches > 2:  # by all the scores, each kernel of which reads or writes them
        return Spent(attention=flops / rate, memory=moved / where.bytes_per_second + floor)
    return Spent(attention=max(flops / rate, moved / where.bytes_per_second) + floor)


def _pointwise(operation: Operation, where: Surroundings, *, backward: bool) -> Spent:
    launches = operation.backward_launches if backward else operation.launches
    moved = operation.backward_moved_bytes if backward else operation.moved_bytes
    if backward and operation.name.endswith(".add"):
        # Its gradient goes two ways, and where they meet again the two are summed.
        moved, launches = operation.moved_bytes, 1
    is_fused = where.is_compiled and ".*." in operation.name  # within a block
    efficiency = where.efficiency
    if is_fused:
        moved *= efficiency.compiled_traffic
        launches *= efficiency.compiled_launches
    elif launches > 1 and operation.kind == "pointwise":  # of a loss every kernel's is counted
        moved *= max(1.0, launches * efficiency.eager_traffic)
    seconds = moved / (where.bytes_per_second * efficiency.pointwise)
    seconds += launches * where.device.kernel_seconds
    return Spent(memory=seconds, launches=launches * where.device.launch_seconds)
