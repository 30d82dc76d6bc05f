"""What of a device's figures a training step reaches: the few numbers that were fitted.

Fitted all together, by `python benchmarks/plan_published.py --fit`, to half of the published runs
in docs/planning.md; the other half judges them. None is of one row or one model.
"""

from __future__ import annotations

from typing import NamedTuple


class Efficiency(NamedTuple):
    """Shares are of what ``Device`` says of large products and plain copies."""

    sustained: float = 0.88
    """Of the best product's rate, once the whole device has been busy for minutes."""
    pointwise: float = 0.44
    """Of a plain copy's rate, of all operators that are bound by memory but products."""
    eager_traffic: float = 0.73
    """How many times an operator's inputs and outputs each of its kernels moves, uncompiled."""
    compiled_traffic: float = 0.48
    """The same of all of an operator's kernels together, where they are compiled with others."""
    compiled_launches: float = 0.3
    """Kernels that are left of those of compiled blocks."""
    attention: float = 0.57
    """Of the device's ``attention_share``."""
    hidden: float = 0.56
    """Share of the computation beside which collectives may run."""


EFFICIENCY = Efficiency()
