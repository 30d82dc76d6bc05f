"""What retention keeps beside its rule: the checkpoints that the run itself may go back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmscale.checkpoint.retention import Spare
from lmscale.config import RunConfig
from lmscale.guard.rewind_plan import find_rewindable
from lmscale.history.corruptions import find_untainted
from lmscale.history.history import History
from lmscale.ranks.ranks import Ranks

REWIND = "rewind"  # the guard would go back to it, or will once it is old enough
UNTAINTED = "untainted"  # a start would, were the ranks found to differ next


def plan_spared(
    config: RunConfig, *, world_size: int, first_step: int, num_rewinds: int = 0
) -> Spare:
    """For a run of so many ranks that began, or was rewound, at ``first_step``.

    Once all steps are done nothing goes back any more, and nothing is spared; nor for a rewind,
    once ``num_rewinds`` are as many as the guard may make.
    """
    may_rewind = num_rewinds < config.guard.max_rewinds

    def spare(steps: Sequence[int], newest: int) -> Mapping[str, Sequence[int]]:
        if newest >= config.train.steps:
            return {}
        untainted = find_untainted(
            *(steps, config, Ranks(world_size=world_size)), newest=newest, first_step=first_step
        )
        return {
            REWIND: find_rewindable(steps, newest=newest, config=config.guard)
            if may_rewind
            else (),
            UNTAINTED: () if untainted is None else (untainted,),
        }

    return spare


def plan_spared_of(config: RunConfig, history: History) -> Spare:
    """The same as the run's last attempt has it, as far as its folder tells."""
    last = history.starts[-1] if history.starts else {}
    first_step = int(last.get("first_step", 0))
    if history.rewinds and history.rewinds[-1].time > float(last.get("time", 0.0)):
        first_step = history.rewinds[-1].to_step
    return plan_spared(
        config,
        world_size=int(last.get("world_size", 1)),
        first_step=first_step,
        num_rewinds=len(history.rewinds),
    )
