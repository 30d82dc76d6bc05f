"""How a step's windows are dealt to ranks and micro-batches: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from lmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """A step's windows on the data ranks. ``global = data ranks × accumulation × micro``."""

    global_windows: int
    data_ranks: int
    micro_windows: int
    accumulation: int

    @property
    def windows_per_rank(self) -> int:
        return self.accumulation * self.micro_windows


def plan_batches(*, global_windows: int, micro_windows: int, data_ranks: int) -> BatchPlan:
    """Deal a step's windows to the ranks; micro-batches are as large as ``micro_windows`` allows.

    The step is the same whatever the number of ranks: only its division changes. Raises
    ``ConfigError`` when the windows cannot be dealt evenly.
    """
    if global_windows % data_ranks:
        below = global_windows // data_ranks * data_ranks
        fits = [n for n in (below, below + data_ranks) if n]
        divisors = [w for w in range(1, global_windows + 1) if global_windows % w == 0]
        near = sorted(sorted(divisors, key=lambda w: abs(w - data_ranks))[:4])
        raise ConfigError(
            f"batch.global_windows = {global_windows} cannot be dealt evenly to "
            f"{data_ranks} ranks. "
            f"Use {' or '.join(map(str, fits))} windows, or {', '.join(map(str, near))} ranks."
        )
    share = global_windows // data_ranks
    micro = max(m for m in range(1, min(micro_windows, share) + 1) if share % m == 0)
    return BatchPlan(
        global_windows=global_windows,
        data_ranks=data_ranks,
        micro_windows=micro,
        accumulation=share // micro,
    )
