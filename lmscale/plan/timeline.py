"""How much memory a pass holds as it goes forward and back: a ``Tape`` played without a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from lmscale.plan.tape import FLOAT, Record, Tape


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Bytes of activations and their gradients, weights and the weights' gradients not."""

    kept_bytes: int
    """What the forward pass leaves for the backward pass."""
    forward_bytes: int
    """The most at once while it goes forward."""
    backward_bytes: int
    """The most at once while it goes back, with a weight's gradient as long as only its operator
    holds it.
    """
    growing_bytes: int
    """The same where the weights' gradients come into being as the pass goes back, with them."""


@lru_cache(maxsize=64)
def play(tape: Tape, *, gradient_itemsize: int = FLOAT, first_gradient_bytes: int = 0) -> Peaks:
    """Play a pass. ``gradient_itemsize``: bytes of an element of the weights' gradients, for
    ``growing_bytes``, which ``first_gradient_bytes`` are added to as soon as there is one.
    """
    player = _Player(
        tape=tape, gradient_itemsize=gradient_itemsize, first_gradient_bytes=first_gradient_bytes
    )
    player.go_forward(tape.records, _last_uses(tape.records))
    kept, forward = player.held, player.most
    player.most = player.most_growing = player.held
    player.go_back()
    return Peaks(
        kept_bytes=kept,
        forward_bytes=forward,
        backward_bytes=player.most,
        growing_bytes=player.most_growing,
    )


def _last_uses(records: Sequence[Record]) -> dict[int, int]:
    """Memory → the number of the last operator that reads or gives it."""
    last: dict[int, int] = {}
    for number, record in enumerate(records):
        for array in (*record.inputs, *record.outputs):
            last[array.memory] = number
    return last


@dataclass(eq=False)
class _Gradient:
    """The memory of a gradient, and how many arrays it is of."""

    nbytes: int
    sharers: int = 0


@dataclass(kw_only=True)
class _Player:
    """The memories that exist, and the most that did at once."""

    tape: Tape
    gradient_itemsize: int
    first_gradient_bytes: int
    held: int = 0
    most: int = 0
    grown: int = 0
    most_growing: int = 0
    alive: set[int] = field(default_factory=set)
    holders: Counter[int] = field(default_factory=Counter)
    """Memory → for how many operators and recomputed blocks autograd keeps it."""
    gradients: dict[int, _Gradient] = field(default_factory=dict)
    """By the number of the array."""

    def look(self, more: int = 0) -> None:
        self.most = max(self.most, self.held + more)
        self.most_growing = max(self.most_growing, self.held + more + self.grown)

    def take(self, memory: int) -> None:
        if memory not in self.alive:
            self.alive.add(memory)
            self.held += self.tape.memories[memory]

    def drop(self, memory: int) -> None:
        if memory in self.alive and not self.holders[memory]:
            self.alive.remove(memory)
            self.held -= self.tape.memories[memory]

    def release(self, memory: int) -> None:
        self.holders[memory] -= 1
        self.drop(memory)

    def go_forward(
        self, records: Sequence[Record], last: dict[int, int], *, again: bool = False
    ) -> None:
        """``again``: of a block that is computed a second time, with all that autograd keeps."""
        begun: set[int] = set()
        for number, record in enumerate(records):
            for array in record.inputs:  # ids and masks that no operator gave
                self.take(array.memory)
            keeps = record.region is None or again
            if record.region is not None and not again and record.region not in begun:
                begun.add(record.region)
                for memory in self.tape.regions[record.region]:
                    self.take(memory)
                    self.holders[memory] += 1
            for array in record.outputs:
                self.take(array.memory)
            for memory in record.saved:
                self.take(memory)
                self.holders[memory] += keeps
            self.look(record.scratch_bytes)
            used = (array.memory for array in (*record.inputs, *record.outputs))
            for memory in {*used, *record.saved}:
                if last.get(memory, number) <= number:
                    self.drop(memory)

    def go_back(self) -> None:
        records = self.tape.records
        end = len(records)
        while end:
            region = records[end - 1].region
            if region is None:
                end -= 1
                self.step_back(records[end])
                continue
            first = end - 1
            while first and records[first - 1].region == region:
                first -= 1
            block = records[first:end]
            self.go_forward(block, _last_uses(block), again=True)
            for record in reversed(block):
                self.step_back(record)
            for memory in self.tape.regions[region]:
                self.release(memory)
            end = first

    def step_back(self, record: Record) -> None:
        if record.has_backward:
            given = [self.gradients.pop(a.number, None) for a in record.outputs]
            for array in record.gradients:
                passed = given[0] if record.passes_gradient else None
                self.receive(array.number, passed or self.hold(array.nbytes))
            self.look(record.backward_scratch_bytes + record.trained_bytes)
            if record.trained_bytes and self.first_gradient_bytes:
                self.grown, self.first_gradient_bytes = self.first_gradient_bytes, 0
                self.look()
            self.grown += record.trained_bytes // self.tape.itemsize * self.gradient_itemsize
            for gradient in given:
                self.leave(gradient)
        for memory in record.saved:
            self.release(memory)

    def hold(self, nbytes: int) -> _Gradient:
        self.held += nbytes
        self.look()
        return _Gradient(nbytes)

    def receive(self, number: int, gradient: _Gradient) -> None:
        """One more gradient of an array. A second one is added to the first, in its place unless
        another array's is there as well.
        """
        gradient.sharers += 1
        first = self.gradients.get(number)
        if first is None:
            self.gradients[number] = gradient
            return
        own = next((each for each in (first, gradient) if each.sharers == 1), None)
        total = own or self.hold(gradient.nbytes)
        total.sharers += 1
        self.gradients[number] = total
        for each in (first, gradient):
            self.leave(each)

    def leave(self, gradient: _Gradient | None) -> None:
        if gradient is None:
            return
        gradient.sharers -= 1
        if not gradient.sharers:
            self.held -= gradient.nbytes
