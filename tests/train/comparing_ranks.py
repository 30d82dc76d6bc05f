"""What the ranks of test_train_compare.py do: train, and have a bit flipped in one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forked_ranks import one_group
from rank_cases import Case, opened

if TYPE_CHECKING:
    from torch import Tensor

    from lmscale.engine.engine import Engine
    from lmscale.ranks.ranks import Ranks
    from lmscale.train.assemble import Run

STEPS = 4
FLIP_AFTER = 3  # steps
WRONG = 1  # the rank that is hit
MODES = {
    "0": {"engine.zero_stage": 0},
    "0-bf16": {"engine.zero_stage": 0, "engine.precision": "bf16"},
    "1-bf16": {"engine.zero_stage": 1, "engine.precision": "bf16"},
    "2": {"engine.zero_stage": 2},
    # Its embeddings are large enough that ZeRO 3 deals them out; the rest is kept whole.
    "3": {
        "engine.zero_stage": 3, "engine.precision": "bf16", "model.width": 256, "model.layers": 1,
    },
}  # fmt: skip
OF_TWO = ("0", "1-bf16", "3")  # those that two ranks do
STATES = ("exp_avg", "exp_avg_sq")


def start(folder: Path, number: int) -> None:
    """What each rank of a start does."""
    told = json.loads((folder / "told.json").read_text())
    with one_group() as ranks:
        saw: dict[str, Any] = {}
        for name, overrides in MODES.items():
            if number == 0 and name not in OF_TWO:
                continue
            case = Case(
                name=name,
                data=told["data"],
                folder=str(folder / f"run-{number}-{name}"),
                overrides=overrides
                | {
                    "train.steps": STEPS,
                    "guard.compare_every_steps": 1,
                    "checkpoint.every_steps": 100,
                },
            )
            saw[name] = train_and_look(case, ranks)
            if number == 0:
                saw[name]["plain"], saw[name]["recomputed"] = (
                    losses(case, ranks, recomputes=recomputes) for recomputes in (False, True)
                )
    (folder / f"saw-{number}-{ranks.rank}.json").write_text(json.dumps(saw))


def train_and_look(case: Case, ranks: Ranks) -> dict[str, Any]:
    """Flip bits here and there while it trains, the last one for good."""
    import torch

    from lmscale.errors import CorruptionError
    from lmscale.files.jsonl import read_rows
    from lmscale.files.run_files import CORRUPTIONS_FILE
    from lmscale.train.compare import RankComparison

    saw: dict[str, Any] = {"found": {}, "steps": 0, "error": None, "code": None}
    with opened(case, ranks) as run:
        run.engine.module.register_buffer("table", torch.ones(4))
        compare = RankComparison(run)

        def hook(step: int) -> None:
            if step == FLIP_AFTER:
                for name, tensor in targets(run.engine).items():
                    saw["found"][name] = look(run.engine, ranks, tensor)
                saw["again"] = describe(run.engine)
                if ranks.rank == WRONG:
                    flip(targets(run.engine)["parameter"])

        try:
            for report in reports_of(run):
                saw["steps"] = report.step
                compare(report)
                hook(report.step)
        except CorruptionError as error:
            saw["error"], saw["code"] = str(error), error.exit_code
            saw["summary"], saw["bad_nodes"] = error.summary, error.bad_nodes
            saw["rows"] = list(read_rows(run.folder / CORRUPTIONS_FILE))
    return saw


def reports_of(run: Run) -> Any:
    from lmscale.train.loop import train_steps

    return train_steps(
        run.engine,
        run.loader,
        run.config,
        first_step=run.start.step,
    )


def targets(engine: Engine) -> dict[str, Tensor]:
    """What may be hit, of what all ranks hold alike: a parameter, a state, a buffer."""
    from lmscale.train.compare import replicated_tensors

    found = dict(replicated_tensors(engine))
    chosen = {"parameter": next(name for name in found if "norm" in name and "(" not in name)}
    for name in found:
        chosen |= {kind: name for kind in ("master", *STATES, "buffer") if f"({kind})" in name}
    return {what: found[name] for what, name in chosen.items()}


def flip(tensor: Tensor) -> None:
    """The lowest bit of the last element."""
    import torch

    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().view(-1).view(integers)
    bits[-1] ^= 1


def look(engine: Engine, ranks: Ranks, tensor: Tensor) -> dict[str, Any] | None:
    """What is found while rank ``WRONG`` has a bit the other way round."""
    if ranks.rank == WRONG:
        flip(tensor)
    found = describe(engine)
    if ranks.rank == WRONG:
        flip(tensor)
    return found


def describe(engine: Engine) -> dict[str, Any] | None:
    from lmscale.train.compare import find_differing_ranks, replicated_tensors

    found = find_differing_ranks(engine, replicated_tensors(engine))
    if found is None:
        return None
    return {"ranks": found.ranks, "names": found.names, "is_certain": found.is_certain}


def losses(case: Case, ranks: Ranks, *, recomputes: bool) -> list[str]:
    """Of every step, with a forward pass done twice before each of them, or without."""
    from lmscale.objective.scores import to_device
    from lmscale.ranks.seeding import seed_step
    from lmscale.train.compare import recompute_matches

    overrides = {**case.overrides, "model.dropout": 0.2}  # a pass draws random numbers
    case = Case(
        name=case.name, data=case.data, folder=f"{case.folder}-{recomputes}", overrides=overrides
    )
    with opened(case, ranks) as run:
        accumulate = type(run.engine).accumulate
        step = [0]

        def checked(engine: Engine, forwards: list[Callable[[], Tensor]], **more: Any) -> None:
            step[0] += 1
            assert recompute_matches(
                lambda: forward(engine, forwards[0].args[1]),
                lambda: seed_step(run.config.run.seed, step[0], ranks.rank),
            )
            accumulate(engine, forwards, **more)

        def forward(engine: Engine, micro: Any) -> Tensor:
            return engine(**to_device(micro.arrays, engine.device)).loss.total

        if recomputes:
            type(run.engine).accumulate = checked  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return [f"{r.loss!r} {r.gradient_norm!r}" for r in reports_of(run)]
        finally:
            type(run.engine).accumulate = accumulate
