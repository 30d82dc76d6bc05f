"""Sections that keep a run from being lost: its checkpoints, and the guard over its figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from lmscale.config.base import Place, Section
from lmscale.config.training import Direction, direction_of


class KeepBestConfig(Section):
    """Checkpoints that are kept for a figure which was measured at their step."""

    metric: str = ""
    """Such as ``evaluation/heldout/loss``, as metrics.jsonl names it; empty: none."""
    count: PositiveInt = 1
    mode: Direction | None = None
    """``min`` or ``max``, whichever is better; default: ``max`` of accuracies, F1 and exact
    matches, else ``min``.
    """

    @property
    def direction(self) -> Direction:
        return self.mode or direction_of(self.metric)


class LocalTierConfig(Section):
    """A second, faster place on every node, for more frequent saves."""

    folder: str = ""
    """On each node's own disk or in /dev/shm; environment variables are filled in. Empty: none."""
    every_minutes: float = Field(default=5.0, gt=0)
    """The newest one is kept, and the one before until that is committed."""


class CheckpointConfig(Section):
    """When a run is saved, where, and which checkpoints are kept."""

    folder: Place = ""
    """A folder that all nodes see, or a URL (``s3://bucket/run``). Default: RUN/checkpoints."""
    every_steps: PositiveInt = 1000
    asynchronous: bool = True
    """Copy what is saved to host memory, and write it while training goes on. Takes as much host
    memory as the checkpoint is large; false: training waits until it is written.
    """
    when_busy: Literal["wait", "skip"] = "wait"
    """What a save does that is due while the one before is still being written. ``skip``: it is
    left out, but never two in a row, and for none of ``checkpoint.local``.
    """
    retries: NonNegativeInt = Field(default=4, le=100)
    """How often a write is tried again that a file system or a server failed, not refused."""
    keep_last: PositiveInt = 3
    keep_every_steps: NonNegativeInt = 0
    """Checkpoints at multiples of this are kept for good; 0 keeps none beyond ``keep_last``."""
    keep_best: KeepBestConfig = KeepBestConfig()
    probe_windows: NonNegativeInt = Field(default=0, le=100_000)
    """Windows whose loss is measured at every save, and again after loading: the losses must be
    equal. Costs a forward pass per save; 0: only the weights' hash is compared.
    """
    local: LocalTierConfig = LocalTierConfig()


class GuardConfig(Section):
    """What happens when a run's figures go wrong: the same on all ranks, and after a restart."""

    max_nonfinite_steps: PositiveInt = 5
    """Steps in a row with a non-finite loss or norm that are skipped before it is a divergence."""
    spike_window: NonNegativeInt = 128
    """Steps over which loss and gradient norm have their medians; 0: no spike is looked for."""
    spike_threshold: float = Field(default=12.0, gt=0)
    """How far above the median a spike is, in standard deviations as the median absolute deviation
    estimates them; at least 2 % of a median loss, 25 % of a median norm are taken for one.
    """
    spike_steps: PositiveInt = 3
    """Steps in a row whose loss and gradient norm are both so high, or whose loss is that of an
    untrained model: a single one is clipped and passes.
    """
    on_divergence: Literal["rewind", "stop"] = "rewind"
    """``rewind``: go back to the last good checkpoint, and jump over the samples that did it.
    ``stop``: end with exit code 76.
    """
    jump_steps: PositiveInt = 16
    """Steps whose samples are jumped: as many, up to the last bad one, or all bad ones in a row if
    those are more. A checkpoint from before them must be there.
    """
    max_rewinds: NonNegativeInt = 3
    """Rewinds in a run; one more divergence ends it with exit code 76."""
    compare_every_steps: NonNegativeInt = 1000
    """How often the ranks compare a hash of what all of them hold alike; they do so as well before
    every save, and before a divergence is acted on. 0: never. A difference is silent corruption of
    memory: it names the rank and stops with exit code 75.
    """
    recompute_every_steps: NonNegativeInt = 0
    """How often each rank does a step's first forward pass twice and compares; 0: never."""

    def find_problems(self) -> Iterator[str]:
        if 0 < self.spike_window < 4 * self.spike_steps:
            yield (
                f"spike_window = {self.spike_window} is shorter than 4 × spike_steps = "
                f"{4 * self.spike_steps}: the spike itself would move the median"
            )
