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
them: what went wrong in a copy is gone by then, and so it must be looked for before. Before a save
what the checkpoint takes in shares from all ranks is compared (``compare_for_save``), so no
checkpoint holds what only one rank held.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from lmscale.checkpoint.fragments import held_fragments
from lmscale.engine import Engine
from lmscale.engine.masters import base_optimizer
from lmscale.engine.step_report import StepReport
from lmscale.errors import CorruptionError, LmscaleError, NoSpaceError
from lmscale.files.jsonl import append_durable_row
from lmscale.files.run_files import CORRUPTIONS_FILE
from lmscale.history.history import attempt_of
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
    """Ranks whose values differ from those of the other ranks."""

    ranks: tuple[int, ...]
    """The wrong ranks; without a majority, all ranks whose values differ."""
    hosts: tuple[str, ...]
    """Of these ranks."""
    names: tuple[str, ...]
    """Names of the differing values."""
    is_certain: bool
    """A majority tells which ranks are wrong."""

    @property
    def summary(self) -> str:
        """For one line of the batch script's."""
        verb = "differs" if len(self.ranks) == 1 else "differ"
        return f"{name_ranks(self.ranks)} on {', '.join(self.hosts[:MAX_NAMED])} {verb}"

    @property
    def bad_nodes(self) -> dict[str, str]:
        """Node → reason; empty without a majority."""
        if not self.is_certain:
            return {}
        what = f"memory or arithmetic: {name_ranks(self.ranks)} held wrong values"
        return dict.fromkeys(self.hosts, what)


def replicated_tensors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the tensors that should be equal on all ranks, each once."""
    places: set[tuple[int, int]] = set()
    for name, tensor in chain(engine.replicas(), shared_tensors(engine)):
        place = (tensor.data_ptr(), tensor.numel())
        if place not in places:  # in fp32 at ZeRO 0 a parameter is its own master
            places.add(place)
            yield name, tensor


def shared_tensors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Those of which a checkpoint takes a share from every rank: at ZeRO 0 all masters and states;
    at every stage buffers, and frozen parameters that ZeRO 3 has not dealt out.
    """
    for fragment in held_fragments(engine):
        for kind, tensor in fragment.tensors.items() if fragment.is_shared else ():
            yield f"{fragment.parameter} ({kind})", tensor


def find_differing_ranks(
    engine: Engine, tensors: Iterable[tuple[str, Tensor]]
) -> Difference | None:
    """Compare ``tensors``, which all ranks should hold alike, and the optimizer's single numbers.

    All ranks call this together, and get the same result. Reads every byte once. One number a rank
    is gathered, and the numbers of all tensors only where those differ.
    """
    hashes: dict[str, int] = {}
    for name, tensor in tensors:
        hashes[name] = fingerprint(tensor, name=name)
        heartbeat.tick()
    scalars = _scalars(engine)
    total = add_fingerprints(hashes.values())
    summaries = gather_json([total, scalars])
    if all(summary == summaries[0] for summary in summaries):
        return None
    rows = gather_json({"host": node_name(), "values": hashes | scalars})
    return judge([row["values"] for row in rows], [row["host"] for row in rows])


def judge(values: Sequence[dict[str, Any]], hosts: Sequence[str]) -> Difference | None:
    """The difference between the ranks' values by name; None if all are equal."""
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


def describe_difference(difference: Difference, *, moment: str) -> str:
    """A sentence on ranks, hosts, values and remedy before ``moment``: "the update of step 4"."""
    who, hosts = name_ranks(difference.ranks), ", ".join(difference.hosts)
    named = ", ".join(difference.names[:MAX_NAMED])
    others = len(difference.names) - MAX_NAMED
    named += f" and {others} more" if others > 0 else ""
    if difference.is_certain:
        verb = "holds" if len(difference.ranks) == 1 else "hold"
        sentence = f"{who} on {hosts} {verb} other values than the other ranks"
    else:
        sentence = f"{who} on {hosts} hold different values, and no majority tells which are right"
    return (
        f"Before {moment}, {sentence}: {named}. Memory or arithmetic failed there "
        "without an error, so the run ends here and nothing is saved. Check the memory of "
        f"{hosts} (ECC counters: nvidia-smi -q -d ECC, edac-util, dmesg), leave the node out until "
        "it is known to be good (`exclude` in the cluster's profile), and start again: the run "
        "goes on from the newest checkpoint, before whose save the ranks were alike."
    )


class RankComparison:
    """Compares the ranks at every ``guard.compare_every_steps``-th step, before its update.

    Called with every report, on all ranks.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._every_steps = run, run.config.guard.compare_every_steps
        self._plan(run.start.step + 1)

    def __call__(self, report: StepReport) -> None:
        self._plan(report.step + 1)

    def _plan(self, step: int) -> None:
        if is_compared(self._run) and step % self._every_steps == 0:
            self._run.engine.before_update.append(partial(self.compare, step))

    def compare(self, step: int) -> None:
        """Raises ``CorruptionError``, the same on all ranks, when they differ."""
        tensors = replicated_tensors(self._run.engine)
        _compare(self._run, tensors, step=step, moment=f"the update of step {step}")
        heartbeat.phase("step")

    def compare_after(self, step: int) -> None:
        """The same out of turn, with this step done."""
        if is_compared(self._run):
            self.compare(step + 1)


def is_compared(run: Run) -> bool:
    """Whether there are ranks to compare, and the configuration wants it."""
    return run.config.guard.compare_every_steps > 0 and run.ranks.world_size > 1


def compare_for_save(run: Run, step: int) -> None:
    """Compare what a checkpoint takes in shares, once ``step`` is done and before it is saved.

    Every rank writes its share of what all should hold alike. A wrong value of one rank would be in
    the checkpoint, and loaded from there it is alike on all ranks: no later comparison can see it.
    """
    if is_compared(run):
        tensors = shared_tensors(run.engine)
        _compare(run, tensors, step=step, moment=f"the save of step {step}")


def _compare(run: Run, tensors: Iterable[tuple[str, Tensor]], *, step: int, moment: str) -> None:
    heartbeat.phase("compare")
    difference = find_differing_ranks(run.engine, tensors)
    if difference is None:
        return
    with failing_together():
        if run.ranks.is_first:
            run.lease.check()
            try:
                _record(run, difference, step)
            except LmscaleError as error:  # which rank is wrong matters more
                logger.error("%s", error)
    raise CorruptionError(
        describe_difference(difference, moment=moment),
        summary=difference.summary,
        bad_nodes=difference.bad_nodes,
    )


def _record(run: Run, difference: Difference, step: int) -> None:
    """Append a row to ``RUN/corruptions.jsonl``, for people; it is durable on return."""
    row = {
        "at_step": step,
        "zero_stage": run.config.engine.zero_stage,
        **attempt_of(run.folder),
        "ranks": difference.ranks,
        "hosts": difference.hosts,
        "is_certain": difference.is_certain,
        "names": difference.names[:MAX_NAMED],
        "time": time.time(),
    }
    append_durable_row(run.folder / CORRUPTIONS_FILE, row, no_space=NoSpaceError)


def _scalars(engine: Engine) -> dict[str, Any]:
    """Single numbers that are alike on all ranks, as JSON has them."""
    optimizer = base_optimizer(engine)
    found: dict[str, Any] = {
        "learning rates": repr([float(group["lr"]) for group in optimizer.param_groups]),
        "loss scale": engine.loss_scale,
    } | engine.counters()
    if engine.config.zero_stage == 0:  # elsewhere a rank has those of its own masters
        steps = [float(state.get("step", -1.0)) for state in optimizer.state.values()]
        found["optimizer's steps"] = repr(steps)
    return found
