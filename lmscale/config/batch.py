"""How a step's windows are dealt to ranks and micro-batches: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from lmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """A step's windows on a given number of ranks. ``global = world × accumulation × micro``."""

    global_windows: int
    world_size: int
    micro_windows: int
    accumulation: int

    @property
    def windows_per_rank(self) -> int:
        return self.accumulation * self.micro_windows


def plan_batches(*, global_windows: int, micro_windows: int, world_size: int) -> BatchPlan:
    """Deal a step's windows to the ranks; micro-batches are as large as ``micro_windows`` allows.

    The step is the same whatever the world size: only its division changes. Raises ``ConfigError``
    when the windows cannot be dealt evenly.
    """
    if global_windows % world_size:
        below = global_windows // world_size * world_size
        fits = [n for n in (below, below + world_size) if n]
        divisors = [w for w in range(1, global_windows + 1) if global_windows % w == 0]
        near = sorted(sorted(divisors, key=lambda w: abs(w - world_size))[:4])
        raise ConfigError(
            f"batch.global_windows = {global_windows} cannot be dealt evenly to "
            f"{world_size} ranks. "
            f"Use {' or '.join(map(str, fits))} windows, or {', '.join(map(str, near))} ranks."
        )
    share = global_windows // world_size
    micro = max(m for m in range(1, min(micro_windows, share) + 1) if share % m == 0)
    return BatchPlan(
        global_windows=global_windows,
        world_size=world_size,
        micro_windows=micro,
        accumulation=share // micro,
    )
