"""What a profiler recorded of some steps → time by phase, module and kernel, and the largest
allocations. Pure: profiling.py records, profile_page.py shows.

The time of a row is the device's, of the kernels that were launched there, or where no kernel was
seen the CPU's own. A backward pass has no modules: an operation of it counts for the module whose
forward operation it belongs to, by autograd's sequence number.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

PHASE, MODULE = "phase: ", "module: "  # what the names of ranges begin with
MAX_ALLOCATIONS = 3000  # the largest ones, whose place is looked up
_BACKWARD_NODE = "autograd::engine::evaluate_function: "


class Event(NamedTuple):
    """One range or operation on a thread of the CPU; seconds since the trace began."""

    name: str
    thread: int
    start: float
    end: float
    sequence: int = -1  # autograd's number of a forward operation, or of the one gone back through
    forward_thread: int | None = None  # of an operation of a backward pass: where that one ran
    kernels: tuple[tuple[str, float], ...] = ()  # that it launched itself: name, seconds


class Allocation(NamedTuple):
    """Memory that was taken, or given back: fewer than no bytes."""

    bytes: int
    at: float  # seconds since the trace began
    thread: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What one rank saw of some steps."""

    title: str  # which run, steps, rank, device
    steps: int
    events: Sequence[Event]
    allocations: Sequence[Allocation] = ()  # of the device that computes
    device_spans: Sequence[tuple[float, float]] = ()  # in which a kernel ran: start, end


class PhaseRow(NamedTuple):
    name: str
    wall_seconds: float  # of all steps
    busy_seconds: float  # of kernels launched in it, or of operations


class ModuleRow(NamedTuple):
    name: str
    calls: int
    forward_seconds: float
    backward_seconds: float  # with what is computed again

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds


class KernelRow(NamedTuple):
    name: str
    calls: int
    seconds: float


class AllocationRow(NamedTuple):
    bytes: int  # of each
    count: int
    operation: str
    module: str
    phase: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Rows in the order of their size, phases in the order of their coming."""

    title: str
    steps: int
    wall_seconds: float
    busy_seconds: float
    has_kernels: bool
    phases: Sequence[PhaseRow]
    modules: Sequence[ModuleRow]
    kernels: Sequence[KernelRow]
    allocations: Sequence[AllocationRow]
    grown_bytes: int  # the most in use at once, beyond what was when the recording began


class _Where(NamedTuple):
    module: str = ""
    is_backward: bool = False
    operation: str = ""


@dataclass
class _Sums:
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    forward: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    backward: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)
    kernels: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def summarize(recording: Recording) -> Summary:
    """Add up a recording by phase, module and kernel."""
    phases = _Phases(recording.events)
    placed = _place(recording.events)
    has_kernels = any(event.kernels for event in recording.events)
    sums = _Sums()
    for event, where, self_seconds in placed:
        if event.name.startswith(MODULE):
            sums.calls[where.module] += 1
        phase = phases.at(event.start)
        if phase is None:
            continue
        own = event.kernels if has_kernels else ()
        if not has_kernels and not event.name.startswith(PHASE):
            own = ((event.name, self_seconds),)
        for name, seconds in own:
            is_range = name.startswith(MODULE)  # Python's own time
            if not is_range:
                sums.kernels[name].append(seconds)
            sums.busy[phase] += seconds
            is_back = where.is_backward or phase == "backward"
            of = sums.backward if is_back else sums.forward
            of[where.module or f"({phase})"] += seconds
    walls = phases.walls()
    ran = recording.device_spans or [
        (event.start, event.end) for event, where, _ in placed if where.operation
    ]
    return Summary(
        title=recording.title,
        steps=recording.steps,
        wall_seconds=sum(walls.values()),
        busy_seconds=_covered(ran),
        has_kernels=has_kernels,
        phases=[PhaseRow(name, wall, sums.busy[name]) for name, wall in walls.items()],
        modules=_rank_modules(sums),
        kernels=sorted(
            (KernelRow(name, len(each), sum(each)) for name, each in sums.kernels.items()),
            key=lambda row: -row.seconds,
        ),
        allocations=_rank_allocations(recording.allocations, placed, phases),
        grown_bytes=_most_grown(recording.allocations),
    )


def fold_layers(module: str) -> str:
    """``blocks.*.attention`` for every block's."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module)


class _Phases:
    """What the loop was at, by time."""

    def __init__(self, events: Iterable[Event]) -> None:
        spans = [event for event in events if event.name.startswith(PHASE)]
        self._spans = sorted(spans, key=lambda span: span.start)
        self._starts = [span.start for span in self._spans]

    def at(self, instant: float) -> str | None:
        place = bisect.bisect_right(self._starts, instant) - 1
        return self._spans[place].name.removeprefix(PHASE) if place >= 0 else None

    def walls(self) -> dict[str, float]:
        seconds: dict[str, float] = {}
        for span in self._spans:
            name = span.name.removeprefix(PHASE)
            seconds[name] = seconds.get(name, 0.0) + span.end - span.start
        return seconds


def _place(events: Sequence[Event]) -> list[tuple[Event, _Where, float]]:
    """Every event with where it belongs and its seconds without those of the events inside it."""
    nested = list(_parents(events))
    forward_of: dict[tuple[int, int], str] = {}
    for event, where in _walk(nested, {}):
        if event.forward_thread is None and event.sequence >= 0 and where.module:
            forward_of[event.thread, event.sequence] = where.module
    placed = list(_walk(nested, forward_of))
    inside: dict[int, float] = defaultdict(float)
    for parent, event in nested:
        if parent is not None and not event.name.startswith(PHASE):
            inside[id(parent)] += event.end - event.start
    return [
        (event, where, max(0.0, event.end - event.start - inside[id(event)]))
        for event, where in placed
    ]


def _parents(events: Sequence[Event]) -> Iterator[tuple[Event | None, Event]]:
    """Every event behind the innermost one that it is inside of, on its own thread."""
    stacks: dict[int, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda each: (each.thread, each.start, -each.end)):
        stack = stacks[event.thread]
        while stack and stack[-1].end <= event.start and stack[-1].end < event.end:
            stack.pop()
        yield (stack[-1] if stack else None), event
        stack.append(event)


def _walk(
    nested: Iterable[tuple[Event | None, Event]], forward_of: dict[tuple[int, int], str]
) -> Iterator[tuple[Event, _Where]]:
    wheres: dict[int, _Where] = {}
    for parent, event in nested:
        where = _Where() if parent is None else wheres[id(parent)]
        if event.name.startswith(MODULE):
            where = where._replace(module=fold_layers(event.name.removeprefix(MODULE)))
        elif event.name.startswith(_BACKWARD_NODE):
            key = (event.forward_thread or 0, event.sequence)
            where = _Where(forward_of.get(key, where.module), True)
        if not event.name.startswith((PHASE, MODULE)):
            where = where._replace(operation=event.name)
        wheres[id(event)] = where
        yield event, where


def _rank_modules(sums: _Sums) -> list[ModuleRow]:
    names = dict.fromkeys((*sums.calls, *sums.forward, *sums.backward))
    rows = (
        ModuleRow(name, sums.calls[name], sums.forward.get(name, 0), sums.backward.get(name, 0))
        for name in names
    )
    return sorted(rows, key=lambda row: -row.seconds)


def _rank_allocations(
    allocations: Sequence[Allocation],
    placed: Sequence[tuple[Event, _Where, float]],
    phases: _Phases,
) -> list[AllocationRow]:
    """The largest first; equal ones of one place are counted in one row."""
    by_thread: dict[int, list[tuple[Event, _Where]]] = defaultdict(list)
    for event, where, _ in placed:
        by_thread[event.thread].append((event, where))
    starts = {thread: [event.start for event, _ in rows] for thread, rows in by_thread.items()}
    taken = sorted((each for each in allocations if each.bytes > 0), key=lambda each: -each.bytes)
    counts: Counter[tuple[int, str, str, str]] = Counter()
    for each in taken[:MAX_ALLOCATIONS]:
        where = _Where()
        rows = by_thread.get(each.thread, [])
        place = bisect.bisect_right(starts.get(each.thread, []), each.at) - 1
        while place >= 0:  # the innermost one that is not over
            event, where_of = rows[place]
            if event.end >= each.at:
                where = where_of
                break
            place -= 1
        counts[each.bytes, where.operation, where.module, phases.at(each.at) or ""] += 1
    rows = [AllocationRow(size, count, *named) for (size, *named), count in counts.items()]
    return sorted(rows, key=lambda row: (-row.bytes, -row.count))


def _most_grown(allocations: Iterable[Allocation]) -> int:
    grown = most = 0
    for each in sorted(allocations, key=lambda each: each.at):
        grown += each.bytes
        most = max(most, grown)
    return most


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds in which at least one of the spans was."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total
