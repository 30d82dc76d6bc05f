"""What the ranks of test_engine_skip.py do: a step in whose gradient one rank has an infinity."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from forked_ranks import one_group
from rank_cases import Case
from tiny_run import tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from lmscale.engine.engine import Engine
    from lmscale.engine.step_report import StepReport
    from lmscale.ranks.ranks import Ranks

BAD_STEP = 2


def start(folder: Path, number: int) -> None:
    cases = [Case(**row) for row in json.loads((folder / "cases.json").read_text())]
    saw = {}
    with one_group() as ranks:
        for case in cases:
            saw[case.name] = watch_steps(case, ranks)
        (folder / f"saw-{number}-{ranks.rank}.json").write_text(json.dumps(saw))


def watch_steps(case: Case, ranks: Ranks) -> list[dict]:
    """Every step's report, and what of this rank's state it changed."""
    from lmscale.config import plan_batches
    from lmscale.objective.objective import build_preparation
    from lmscale.ranks.mesh import plan_mesh
    from lmscale.stream.loader import open_loader
    from lmscale.stream.stream import open_stream
    from lmscale.stream.worker import LoaderJob
    from lmscale.train.initial import build_run_engine
    from lmscale.train.loop import train_steps

    config = tiny_config(Path(case.data), Path(case.folder), case.overrides)
    plan = plan_batches(global_windows=12, micro_windows=3, data_ranks=ranks.world_size)
    engine = build_run_engine(config, plan, plan_mesh(ranks), torch.device("cpu"), fill=True)
    steps, rank = config.train.steps, ranks.rank
    with (
        open_stream(config.stream, seed=1) as stream,
        open_loader(
            LoaderJob(
                stream=stream,
                preparation=build_preparation(config),
                plan=plan,
                data_rank=rank,
                first_n=0,
                num_steps=steps,
            ),
            workers=0,
        ) as loader,
    ):
        reports = train_steps(
            engine,
            loader,
            config,
        )
        return list(watch(engine, reports, spoils=rank == ranks.world_size - 1))


def watch(engine: Engine, reports: Iterable[StepReport], *, spoils: bool) -> Iterator[dict]:
    before = snapshot(engine)
    injection = None
    reads = _HostReads()
    # As the loop calls it; the engine itself is frozen.
    type(engine).update = _counting(type(engine).update, reads)
    for report in reports:
        after = snapshot(engine)
        changed = [key for key in after if not torch.equal(after[key], before[key])]
        yield {
            "is_skipped": report.is_skipped,
            "gradient_norm": report.gradient_norm,
            "loss": report.loss,
            "host_reads": reads.take(),
            "changed": changed,
            "finite": all(bool(torch.isfinite(tensor).all()) for tensor in after.values()),
            "kept": len(after),
        }
        before = after
        if injection is not None:
            injection.remove()
            injection = None
        # The last rank's alone: the others must hear of it.
        if spoils and report.step == BAD_STEP - 1:
            injection = inject(engine)


class _HostReads(TorchDispatchMode):
    """Counts the numbers that the host asks a tensor for: on a GPU it waits for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))

    def take(self) -> int:
        count, self._count = self._count, 0
        return count


def _counting(update, reads: _HostReads):
    update = getattr(update, "uncounted", update)

    def counted(engine, **arguments):
        with reads:
            return update(engine, **arguments)

    counted.uncounted = update
    return counted


def inject(engine: Engine):
    parameter = next(row[1] for row in engine.named_parameters() if "feed_forward." in row[0])

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        spoiled = gradient.clone()
        spoiled.view(-1)[3] = float("inf")
        return spoiled

    return parameter.register_hook(spoil)


def snapshot(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of this rank's weights, masters and optimizer states."""
    from lmscale.engine.masters import base_optimizer, master_groups

    held = {}
    for name, parameter in engine.named_parameters():
        held[f"weight:{name}"] = getattr(parameter, "ds_tensor", parameter).detach().clone()
    state = base_optimizer(engine).state
    for number, (master, _) in enumerate(master_groups(engine)):
        held[f"master:{number}"] = master.detach().clone()
        for kind, tensor in state[master].items():
            held[f"{kind}:{number}"] = tensor.detach().clone()
    return held
