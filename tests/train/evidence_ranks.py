"""What the ranks of test_train_evidence.py do: spoil a model, and let the guard tell of it."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from forked_ranks import one_group
from rank_cases import Case
from tiny_run import tiny_config

NAN_ELEMENT = 37  # of the first feed-forward matrix
SPIKE = 1e4


def start(folder: Path, number: int) -> None:
    cases = [Case(**row) for row in json.loads((folder / "cases.json").read_text())]
    with one_group() as ranks:
        for case in cases:
            diverge(case, Path(case.folder) / f"ranks-{ranks.world_size}", ranks)


def diverge(case: Case, folder: Path, ranks: Any) -> None:
    """Let the guard see bad steps of a run with a NaN in one matrix and a spike in another."""
    from lmscale.checkpoint.fragments import owned_fragments
    from lmscale.config import plan_batches
    from lmscale.guard.guard import Guard, RewindRequest
    from lmscale.ranks.mesh import plan_mesh
    from lmscale.stream.stream import open_stream
    from lmscale.tokenizer.codec import load_tokenizer
    from lmscale.train.evidence import judge, measure_states
    from lmscale.train.initial import build_run_engine

    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(Path(case.data), folder, case.overrides)
    plan = plan_batches(global_windows=12, micro_windows=1, data_ranks=ranks.world_size)
    engine = build_run_engine(config, plan, plan_mesh(ranks), torch.device("cpu"), fill=True)
    sound = measure_states(engine)
    broken, spiking = (
        next(name for name, _ in engine.named_parameters() if part in name)
        for part in ("blocks.0.feed_forward.", "blocks.1.feed_forward.")
    )
    for fragment in owned_fragments(engine):
        place = NAN_ELEMENT - fragment.offset
        if fragment.parameter == broken and 0 <= place < fragment.elements:
            fragment.tensors["master"][place] = math.nan
        if fragment.parameter == spiking:
            fragment.tensors["exp_avg"].fill_(SPIKE)
    with open_stream(config.stream, seed=1) as stream:
        run: Any = SimpleNamespace(
            engine=engine,
            ranks=ranks,
            stream=stream,
            tokenizer=load_tokenizer(config.tokenizer.folder),
            folder=folder,
        )
        hook = partial(judge, run, Guard(config.guard, minimum_loss_scale=1, vocab_size=300))
        try:
            for step in range(1, 99):
                hook(report(step))
        except RewindRequest as request:
            assert request.divergence.at_step == 25
        else:
            raise AssertionError("the guard has let everything pass")
    seen = {"sound": sound, "broken": broken, "spiking": spiking}
    (folder / f"seen-{ranks.rank}.json").write_text(json.dumps(seen))


def report(step: int) -> Any:
    from lmscale.engine.step_report import StepReport

    return StepReport(
        step=step,
        first_n=12 * (step - 1),
        samples=12,
        targets=300,
        digest=1,
        figures={"loss": math.nan if step > 20 else 2.0},
        counts={"loss": 300},
        learning_rate=3e-4,
        gradient_norm=1.0,
        is_skipped=step > 20,
        loss_scale=1.0,
        step_seconds=0.1,
        wait_seconds=0.0,
        stop_reason=None,
    )
