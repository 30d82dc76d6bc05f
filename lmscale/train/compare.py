"""Silent corruption: the ranks compare a hash of all that every one of them should hold alike, and
a rank a forward pass with the same done again.

A bit that flips in a rank's memory raises nothing: the rank goes on with a weight of its own, and
at ZeRO 0 for ever. Alike on all ranks are the parameters of the forward pass (at ZeRO 3 only the
small ones, which are kept whole), buffers, the optimizer's step, the learning rates and the loss
scale; at ZeRO 0 also the fp32 masters and the optimizer's states, which else one rank alone has.

At ZeRO 1 to 3 the update deals the parameters out anew, from the masters of the rank that owns
them: what went wrong in a copy is gone by then, and so it must be looked for before. Before a save
what the checkpoint takes in shares from all ranks is compared (``compare_for_save``), so no
checkpoint holds what only one rank held.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.fragments import held_fragments
from lmscale.engine.engine import Engine
from lmscale.engine.masters import base_optimizer
from lmscale.engine.step_report import StepReport
from lmscale.errors import CorruptionError, LmscaleError, NoSpaceError
from lmscale.files.jsonl import append_durable_row
from lmscale.files.run_files import CORRUPTIONS_FILE
from lmscale.history.history import attempt_of
from lmscale.objective.scores import to_device
from lmscale.ranks.attempt import node_name
from lmscale.ranks.collectives import failing_together, gather_json
from lmscale.ranks.fingerprint import add_fingerprints, fingerprint
from lmscale.ranks.ranks import name_ranks
from lmscale.stream.batches import StepBatch
from lmscale.train.assemble import Run
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)

MAX_NAMED = 5  # parameters in the message


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Ranks whose values differ from those of the other ranks."""

    ranks: tuple[int, ...]  # the wrong ranks; without a majority, all ranks whose values differ
    hosts: tuple[str, ...]  # of these ranks
    names: tuple[str, ...]  # names of the differing values
    is_certain: bool  # a majority tells which ranks are wrong


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
    optimizer = base_optimizer(engine)
    scalars: dict[str, Any] = {
        "learning rates": repr([float(group["lr"]) for group in optimizer.param_groups]),
        "loss scale": engine.loss_scale,
    } | engine.counters()
    if engine.config.zero_stage == 0:  # elsewhere a rank has those of its own masters
        steps = [float(state.get("step", -1.0)) for state in optimizer.state.values()]
        scalars["optimizer's steps"] = repr(steps)
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


def corruption_error(difference: Difference, *, moment: str) -> CorruptionError:
    """Ranks, hosts, values and remedy before ``moment``: "the update of step 4"."""
    who, hosts = name_ranks(difference.ranks), ", ".join(difference.hosts)
    ending = "s" if len(difference.ranks) == 1 else ""  # of its verb
    named = ", ".join(difference.names[:MAX_NAMED])
    others = len(difference.names) - MAX_NAMED
    named += f" and {others} more" if others > 0 else ""
    if difference.is_certain:
        sentence = f"{who} on {hosts} hold{ending} other values than the other ranks"
    else:
        sentence = f"{who} on {hosts} hold different values, and no majority tells which are right"
    reason = f"memory or arithmetic: {who} held wrong values"
    return CorruptionError(
        f"Before {moment}, {sentence}: {named}. Memory or arithmetic failed there "
        "without an error, so the run ends here and nothing is saved. Check the memory of "
        f"{hosts} (ECC counters: nvidia-smi -q -d ECC, edac-util, dmesg), leave the node out until "
        "it is known to be good (`exclude` in the cluster's profile), and start again: the run "
        "goes on from the newest checkpoint, before whose save the ranks were alike.",
        summary=f"{who} on {', '.join(difference.hosts[:MAX_NAMED])} differ{ending}",
        bad_nodes=dict.fromkeys(difference.hosts, reason) if difference.is_certain else {},
    )


class RankComparison:
    """Compares the ranks at every ``guard.compare_every_steps``-th step, before its update.

    Called with every report, on all ranks.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._plan(run.start.step + 1)

    def __call__(self, report: StepReport) -> None:
        self._plan(report.step + 1)

    def _plan(self, step: int) -> None:
        every_steps = self._run.config.guard.compare_every_steps
        if every_steps and step % every_steps == 0:
            self._run.engine.before_update.append(partial(self.compare, step))

    def compare(self, step: int) -> None:
        """Raises ``CorruptionError``, the same on all ranks, when they differ."""
        tensors = replicated_tensors(self._run.engine)
        _compare(self._run, tensors, step=step, moment=f"the update of step {step}")
        heartbeat.phase("step")


def compare_for_save(run: Run, step: int) -> None:
    """Compare what a checkpoint takes in shares, once ``step`` is done and before it is saved.

    A wrong value of one rank, loaded from a checkpoint, is alike on all: no comparison can see it.
    """
    _compare(run, shared_tensors(run.engine), step=step, moment=f"the save of step {step}")


def _compare(run: Run, tensors: Iterable[tuple[str, Tensor]], *, step: int, moment: str) -> None:
    """Nothing where there is one rank, or the configuration wants no comparisons."""
    if not run.config.guard.compare_every_steps or run.ranks.world_size == 1:
        return
    heartbeat.phase("compare")
    difference = find_differing_ranks(run.engine, tensors)
    if difference is None:
        return
    with failing_together():
        if run.ranks.is_first:
            run.lease.check()
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
            try:
                append_durable_row(run.folder / CORRUPTIONS_FILE, row, no_space=NoSpaceError)
            except LmscaleError as error:  # which rank is wrong matters more
                logger.error("%s", error)
    raise corruption_error(difference, moment=moment)


def find_recompute_fault(
    engine: Engine, batch: StepBatch, step: int, reseed: Callable[[], None]
) -> CorruptionError | None:
    """Of a rank whose forward pass does not come out the same when it is done twice."""
    heartbeat.phase("recompute")
    inputs = to_device(batch.micro_batches[0].arrays, engine.device)
    if recompute_matches(lambda: engine(**inputs).terms(), reseed):
        return None
    host = node_name()
    return CorruptionError(
        f"On {host} the forward pass of step {step} did not give the same bits when it was done "
        "again: arithmetic or memory failed there without an error, so the run ends here and "
        f"nothing is saved. Check {host} (ECC counters: nvidia-smi -q -d ECC, dmesg; temperature "
        "and power), leave it out until it is known to be good (`exclude` in the cluster's "
        "profile), and start again: the run goes on from the newest checkpoint. If it happens on "
        "every node, the model's forward pass is not deterministic: set "
        "guard.recompute_every_steps to 0.",
        summary=f"a forward pass on {host} did not repeat",
        bad_nodes={host: "a forward pass done twice gave two results"},
    )


def recompute_matches(forward: Callable[[], Tensor], reseed: Callable[[], None]) -> bool:
    """Whether two passes give the same bits; all ranks call it together, for ZeRO 3 gathers.

    Both passes are without gradient: with it a device may choose another kernel, whose last bits
    may differ. ``reseed`` sets the random numbers that a pass draws, and is called once more at the
    end, so that nothing in the step shows that this was here.
    """
    passes = []
    with torch.no_grad():
        for _ in range(2):
            reseed()
            passes.append(forward().detach().clone())
            heartbeat.tick()
    reseed()
    first, again = (value.reshape(-1).view(torch.uint8) for value in passes)
    return bool(torch.equal(first, again))  # by the bits: a loss that is not a number agrees too
