"""Silent corruption: the ranks compare a hash of all that every one of them should hold alike.

A bit that flips in a rank's memory raises nothing: the rank goes on with a weight of its own, and
at ZeRO 0 for ever. What is alike on all ranks, by ZeRO stage:

===== ==========================================================================================
stage compared
===== ==========================================================================================
0     the parameters of the forward pass, buffers, the fp32 masters, the optimizer's states
1, 2  the parameters of the forward pass and buffers; masters and states are on one rank alone
3     parameters that are kept whole (small ones), and buffers
all   the optimizer's step, the learning rates, the loss scale
===== ==========================================================================================

At ZeRO 1 to 3 the update deals the parameters out anew, from the masters of the rank that owns
them: what went wrong in a copy is gone by then, and so it must be looked for before.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lmscale.checkpoint.fragments import held_fragments
from lmscale.engine import Engine
from lmscale.engine.masters import base_optimizer
from lmscale.engine.step_report import StepReport
from lmscale.errors import CorruptionError, LmscaleError
from lmscale.history.corruptions import Corruption, record_corruption
from lmscale.history.starts import attempt_of
from lmscale.ranks.attempt import node_name
from lmscale.ranks.collectives import failing_together, gather_json
from lmscale.ranks.fingerprint import add_fingerprints, fingerprint
from lmscale.ranks.ranks import name_ranks
from lmscale.train.assemble import Run
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)

MAX_NAMED = 5  # parameters in the message


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Ranks that hold something else than the others."""

    ranks: tuple[int, ...]
    """Those that are wrong; where no majority says who is right, all that are not alike."""
    hosts: tuple[str, ...]
    """Of these ranks."""
    names: tuple[str, ...]
    """What they hold differently."""
    is_certain: bool
    """A majority tells which ranks are wrong."""

    @property
    def summary(self) -> str:
        """For one line of the batch script's."""
        verb = "differs" if len(self.ranks) == 1 else "differ"
        return f"{name_ranks(self.ranks)} on {', '.join(self.hosts[:MAX_NAMED])} {verb}"

    @property
    def bad_nodes(self) -> dict[str, str]:
        """Node → reason; none where nobody knows which ranks are right."""
        if not self.is_certain:
            return {}
        what = f"memory or arithmetic: {name_ranks(self.ranks)} held wrong values"
        return dict.fromkeys(self.hosts, what)


def replicated_tensors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """What every rank should hold alike, each once, by a name that is the same on all of them."""
    seen: set[tuple[int, int]] = set()
    for name, tensor in _replicas(engine):
        place = (tensor.data_ptr(), tensor.numel())
        if place not in seen:  # in fp32 at ZeRO 0 a parameter is its own master
            seen.add(place)
            yield name, tensor


def _replicas(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in engine.named_parameters():
        held: Any = parameter
        is_dealt = hasattr(held, "ds_id")  # at ZeRO 3, where small ones are kept whole as well
        if not is_dealt or (held.ds_persist and held.ds_status.name == "AVAILABLE"):
            yield name, parameter.detach()
    for name, buffer in engine.module.named_buffers():
        yield f"{name.removeprefix(engine.name_prefix)} (buffer)", buffer
    for fragment in held_fragments(engine):
        for kind, tensor in fragment.tensors.items() if fragment.is_shared else ():
            yield f"{fragment.parameter} ({kind})", tensor


def fingerprint_replicas(engine: Engine) -> dict[str, int]:
    """Name → hash of what this rank should hold as all others do. Reads every byte of it once."""
    found = {}
    for name, tensor in replicated_tensors(engine):
        found[name] = fingerprint(tensor, name=name)
        heartbeat.tick()
    return found


def find_differing_ranks(engine: Engine) -> Difference | None:
    """Compare what all ranks should hold alike; all of them call this together, with one result.

    One number a rank is gathered, and the numbers of all tensors only when those differ.
    """
    found = fingerprint_replicas(engine)
    scalars = _scalars(engine)
    total = add_fingerprints(found.values())
    summaries = gather_json([total, scalars])
    if all(summary == summaries[0] for summary in summaries):
        return None
    rows = gather_json({"host": node_name(), "values": found | scalars})
    return judge([row["values"] for row in rows], [row["host"] for row in rows])


def judge(values: Sequence[dict[str, Any]], hosts: Sequence[str]) -> Difference | None:
    """Who differs in what, given each rank's values by name; None where all are alike."""
    wrong: set[int] = set()
    names, is_certain = [], True
    for name in dict.fromkeys(name for of_rank in values for name in of_rank):
        column = [of_rank.get(name) for of_rank in values]
        counts = Counter(column).most_common()
        if len(counts) == 1:
            continue
        names.append(name)
        # Two copies do not go wrong in the same way: who agrees with others is right.
        has_majority = counts[0][1] > counts[1][1]
        is_certain = is_certain and has_majority
        right = counts[0][0] if has_majority else None
        wrong |= {r for r, value in enumerate(column) if not has_majority or value != right}
    if not names:
        return None
    return Difference(
        ranks=tuple(sorted(wrong)),
        hosts=tuple(dict.fromkeys(hosts[rank] for rank in sorted(wrong))),
        names=tuple(names),
        is_certain=is_certain,
    )


def describe_difference(difference: Difference, *, step: int) -> str:
    """Who, where, what, and what to do."""
    who, hosts = name_ranks(difference.ranks), ", ".join(difference.hosts)
    named = ", ".join(difference.names[:MAX_NAMED])
    others = len(difference.names) - MAX_NAMED
    named += f" and {others} more" if others > 0 else ""
    if difference.is_certain:
        verb = "holds" if len(difference.ranks) == 1 else "hold"
        found = f"{who} on {hosts} {verb} other values than the other ranks"
    else:
        found = f"{who} on {hosts} hold different values, and no majority tells which are right"
    return (
        f"Before the update of step {step}, {found}: {named}. Memory or arithmetic failed there "
        "without an error, so the run ends here and nothing is saved. Check the memory of "
        f"{hosts} (ECC counters: nvidia-smi -q -d ECC, edac-util, dmesg), leave the node out until "
        "it is known to be good (`exclude` in the cluster's profile), and start again: the run "
        "goes on from the newest checkpoint. At ZeRO 0 those that were saved since the last "
        "comparison without a difference may hold the wrong values too, and are passed over."
    )


class RankComparison:
    """Compares the ranks at every ``guard.compare_every_steps``-th step, before its update.

    Called with every report, on all ranks. What a save of that step holds was compared then, but
    for the update itself.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._engine, self._ranks = run, run.engine, run.ranks
        # What a save of this step holds was alike on all ranks: at the start all have read it from
        # the same files.
        self._clean_step = run.start.step
        self._every_steps = run.config.guard.compare_every_steps
        self._is_on = self._every_steps > 0 and self._ranks.world_size > 1
        self._plan(run.start.step + 1)

    def __call__(self, report: StepReport) -> None:
        self._plan(report.step + 1)

    def _plan(self, step: int) -> None:
        if self._is_on and step % self._every_steps == 0:
            self._engine.before_update.append(partial(self.compare, step))

    def _record(self, difference: Difference, step: int) -> None:
        """What was saved since the last comparison without a difference may be wrong for good."""
        with failing_together():
            if self._ranks.is_first:
                self._run.lease.check()
                try:
                    found = Corruption(
                        clean_step=self._clean_step,
                        at_step=step,
                        zero_stage=self._engine.config.zero_stage,
                        **attempt_of(self._run.folder),
                        ranks=difference.ranks,
                        hosts=difference.hosts,
                        is_certain=difference.is_certain,
                        names=difference.names[:MAX_NAMED],
                        time=time.time(),
                    )
                    record_corruption(self._run.folder, found)
                except LmscaleError as error:  # which rank is wrong matters more
                    logger.error("%s", error)

    def compare(self, step: int) -> None:
        """Raises ``CorruptionError``, the same on all ranks, when they differ."""
        heartbeat.phase("compare")
        difference = find_differing_ranks(self._engine)
        if difference is not None:
            self._record(difference, step)
            raise CorruptionError(
                describe_difference(difference, step=step),
                summary=difference.summary,
                bad_nodes=difference.bad_nodes,
            )
        self._clean_step = step
        heartbeat.phase("step")

    def compare_after(self, step: int) -> None:
        """The same out of turn, with this step done: all that was saved so far is in question."""
        if self._is_on:
            self.compare(step + 1)


def _scalars(engine: Engine) -> dict[str, Any]:
    """Single numbers that are alike on all ranks, as JSON has them."""
    optimizer = base_optimizer(engine)
    found: dict[str, Any] = {
        "learning rates": repr([float(group["lr"]) for group in optimizer.param_groups]),
        "loss scale": engine.loss_scale,
        "DeepSpeed's steps": int(engine.deepspeed.global_steps),
        "DeepSpeed's skipped steps": int(engine.deepspeed.skipped_steps),
    }
    if engine.config.zero_stage == 0:  # elsewhere a rank has those of its own masters
        steps = [float(state.get("step", -1.0)) for state in optimizer.state.values()]
        found["optimizer's steps"] = repr(steps)
    return found
