"""How long a step takes, and why: a roofline of its operators, and of what the ranks send.

    step = accumulation × (forward + backward, with what is computed again and not hidden of the
           collectives) + the collectives at its end + the optimizer's update + the host's own work

Every phase says what bounds it. The sources of the figures stand beside them, in ``devices.py``,
``collectives.py``, ``products.py`` and ``efficiency.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lmscale.config import RunConfig
from lmscale.plan.account import Flops, account_planned
from lmscale.plan.devices import Machine, settle_precision
from lmscale.plan.efficiency import EFFICIENCY, Efficiency
from lmscale.plan.operations import Operation, find_frozen_names, list_operations, list_parameters
from lmscale.plan.operator_times import Spent, Surroundings, operator_time
from lmscale.plan.reckoned import count_step, find_measured, reckon_step
from lmscale.plan.traffic import Exchange, list_exchanges
from lmscale.plan.update import update_time

_COUNTED = ("product", "attention")  # kinds of operators whose FLOPs MFU counts


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the step that nothing else runs beside."""

    name: str  # forward, backward or step, as a run's own phases are called
    spent: Mapping[str, float]
    """What it is spent on → seconds of the step: products, attention, memory, launches, links."""

    @property
    def seconds(self) -> float:
        return sum(self.spent.values())

    @property
    def bound_by(self) -> str:
        return max(self.spent, key=lambda name: self.spent[name])


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step of all ranks, after a warm-up of the batch."""

    phases: tuple[Phase, ...]
    ranks: int
    tokens: int
    """Positions of the step's windows, padding included, as MFU counts them."""
    flops: Flops
    """Of a token."""
    peak_flops: float | None
    """Of a device; None where it has none for the precision."""
    links_seconds: float
    """Of all collectives, those that run beside computation included."""
    exchanged_bytes: float
    """That a rank hands to collectives."""
    recomputed_seconds: float
    """Of a rank, what it computes again."""

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_second_per_device(self) -> float:
        return self.tokens_per_second / self.ranks

    @property
    def achieved_flops(self) -> float:
        """FLOP/s of a device, by the dense count."""
        return self.tokens_per_second_per_device * self.flops.dense

    @property
    def mfu_dense(self) -> float | None:
        """By the data sheet's peak; None without one, as is every CPU."""
        return self.achieved_flops / self.peak_flops if self.peak_flops else None

    @property
    def mfu_causal(self) -> float | None:
        rate = self.tokens_per_second_per_device * self.flops.causal
        return rate / self.peak_flops if self.peak_flops else None

    @property
    def hidden_seconds(self) -> float:
        """Of collectives that run beside computation."""
        shown = sum(phase.spent.get("links", 0.0) for phase in self.phases)
        return max(0.0, self.links_seconds - shown)

    @property
    def bound_by(self) -> str:
        """What most of the step is spent on."""
        spent: dict[str, float] = {}
        for phase in self.phases:
            for name, seconds in phase.spent.items():
                spent[name] = spent.get(name, 0.0) + seconds
        return max(spent, key=lambda name: spent[name])


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One micro-batch."""

    forward: Spent
    backward: Spent
    recomputed: Spent


def plan_step(config: RunConfig, machine: Machine, *, efficiency: Efficiency = EFFICIENCY) -> Step:
    """The step of a configuration on a machine. Raises ``ConfigError`` where its windows cannot be
    dealt to the ranks.
    """
    config = settle_precision(config, machine.device)
    batch = config.batch.plan(machine.ranks)
    operations = list_operations(
        config, micro_windows=batch.micro_windows, on_gpu=machine.device.kind == "gpu"
    )
    tokens = batch.micro_windows * config.stream.sequence_length
    model = _Weights.of(config, operations, tokens=tokens)
    exchanges = list_exchanges(
        config.engine,
        elements=model.elements,
        trained=model.trained,
        accumulation=batch.accumulation,
        layers=max((operation.times for operation in operations), default=1),
    )
    where = Surroundings(
        device=machine.device,
        precision=config.engine.precision,
        is_compiled=config.engine.compile,
        efficiency=efficiency,
    )
    once = _plan_pass(operations, where)
    if find_measured(config, machine.device) is not None:
        phases = _measured_phases(config, machine, exchanges)
    else:
        phases = _roofline_phases(config, machine, once, model, exchanges, efficiency)
    return Step(
        phases=tuple(phases),
        ranks=machine.ranks,
        tokens=batch.global_windows * config.stream.sequence_length,
        flops=model.flops,
        peak_flops=machine.device.peak(config.engine.precision),
        links_seconds=sum(each.times * each.seconds(machine) for each in exchanges),
        exchanged_bytes=sum(each.times * each.total_bytes for each in exchanges),
        recomputed_seconds=once.recomputed.device_seconds * batch.accumulation,
    )


def _measured_phases(
    config: RunConfig, machine: Machine, exchanges: Sequence[Exchange]
) -> Iterator[Phase]:
    """Of a calibrated device. What its own ranks send each other was measured with the steps; of
    other numbers of ranks it is added.
    """
    measured = machine.device.measured
    counted = count_step(config, machine.device, ranks=machine.ranks)
    is_known = measured is not None and measured.ranks == machine.ranks
    for name, spent in reckon_step(counted, machine.device).items():
        own = [] if is_known else [each for each in exchanges if each.phase == name]
        links = sum(each.times * each.seconds(machine) for each in own)
        yield Phase(name=name, spent=spent | ({"links": links} if links else {}))


def _roofline_phases(
    config: RunConfig,
    machine: Machine,
    once: _Pass,
    model: _Weights,
    exchanges: Sequence[Exchange],
    efficiency: Efficiency,
) -> Iterator[Phase]:
    times = config.batch.plan(machine.ranks).accumulation
    computed = {
        "forward": once.forward * times,
        "backward": (once.backward + once.recomputed) * times,
        "step": update_time(
            config.engine,
            trained=model.trained,
            tensors=model.tensors,
            accumulation=times,
            machine=machine,
        ),
    }
    for name, spent in computed.items():
        yield _phase(name, spent, exchanges, machine, efficiency)


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """A model's parameters, counted."""

    elements: int
    trained: int
    tensors: int  # that are trained
    flops: Flops

    @classmethod
    def of(cls, config: RunConfig, operations: Sequence[Operation], *, tokens: int) -> _Weights:
        """``operations`` of a micro-batch of so many ``tokens``."""
        shapes = list_parameters(config.model, config.sizes)
        frozen = find_frozen_names(config, shapes)
        trained = [shape.elements for shape in shapes if shape.name not in frozen]
        adapters = sum(shape.elements for shape in shapes if shape.is_adapter)
        account = account_planned(config.model, config.sizes, adapters=adapters)
        return cls(
            elements=sum(shape.elements for shape in shapes),
            trained=sum(trained),
            tensors=len(trained),
            flops=_count_flops(operations, tokens) if account is None else account.flops,
        )


def _count_flops(operations: Sequence[Operation], tokens: int) -> Flops:
    """Of a family without an account here: those of its products and its attention, the backward
    pass as twice the forward.
    """
    forward = sum(each.times * each.flops for each in operations if each.kind in _COUNTED)
    return Flops(dense=3 * forward / tokens, causal=3 * forward / tokens)


def _plan_pass(operations: Sequence[Operation], where: Surroundings) -> _Pass:
    forward = backward = recomputed = Spent()
    for operation in operations:
        once = operator_time(operation, where, backward=False)
        forward += once * operation.times
        recomputed += once * operation.recomputed
        backward += operator_time(operation, where, backward=True) * operation.times
    return _Pass(forward=forward, backward=backward, recomputed=recomputed)


def _phase(
    name: str,
    spent: Spent,
    exchanges: Sequence[Exchange],
    machine: Machine,
    efficiency: Efficiency,
) -> Phase:
    """The phase with what of its collectives is not hidden behind its computation."""
    own = [each for each in exchanges if each.phase == name]
    shown = sum(e.times * e.seconds(machine) for e in own if not e.is_hidden)
    hidden = sum(e.times * e.seconds(machine) for e in own if e.is_hidden)
    # The first bucket of a gather has nothing to run beside.
    first = sum(e.times * e.seconds(machine) / e.buckets for e in own if e.is_hidden)
    links = shown + max(hidden - efficiency.hidden * spent.seconds, min(first, hidden))
    return Phase(name=name, spent=_divide(spent) | ({"links": links} if links else {}))


def _divide(spent: Spent) -> dict[str, float]:
    """Seconds by cause, of which the host's are those that the device waits for it."""
    parts = {
        "products": spent.products,
        "attention": spent.attention,
        "memory": spent.memory,
        "launches": max(0.0, spent.launches - spent.device_seconds),
    }
    return {name: seconds for name, seconds in parts.items() if seconds} or {"memory": 0.0}
