"""What the guard leaves behind for a person: ``RUN/guard/step-000000123/evidence.json``.

Why it judged as it did, the last steps, the samples in question with their text, and what every
parameter and optimizer state looks like. docs/formats.md names its fields.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmscale.checkpoint.fragments import owned_fragments, parameter_shapes
from lmscale.engine.engine import Engine
from lmscale.engine.step_report import StepReport
from lmscale.errors import GuardError, LmscaleError
from lmscale.files.atomic import write_json
from lmscale.files.run_files import step_name
from lmscale.guard.divergence import Divergence
from lmscale.guard.guard import Guard, RewindRequest
from lmscale.guard.state import plain, plain_fields
from lmscale.ranks.collectives import gather_json, sum_float64
from lmscale.stream.stream import Stream
from lmscale.tokenizer.base import Tokenizer
from lmscale.train.assemble import Run
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)

EVIDENCE_FOLDER = "guard"
EVIDENCE_FILE = "evidence.json"
VERSION = 1
MAX_SAMPLES = 64
MAX_TEXT = 300  # characters of a sample
CHUNK = 1 << 22  # elements looked at at once: the memory may be as good as full


def judge(
    run: Run, guard: Guard, report: StepReport, compare: Callable[[int], None] = lambda step: None
) -> None:
    """The guard with its evidence: called after every step, on all ranks.

    What the guard raises is raised, once the evidence is written; it never fails for want of it.
    ``compare`` raises where the ranks differ before the update of a step.
    """
    try:
        guard(report)
    except (RewindRequest, GuardError) as raised:
        assert guard.divergence is not None
        # A rank's wrong memory looks like bad samples, and soon: long before its turn to be
        # compared. A rewind would load what was saved since, and all ranks be wrong alike.
        compare(report.step + 1)
        decision = "rewind" if isinstance(raised, RewindRequest) else "stop"
        save_evidence(run, guard, guard.divergence, decision=decision)
        raise


def save_evidence(run: Run, guard: Guard, divergence: Divergence, *, decision: str) -> None:
    """Gather the evidence and write it, on rank 0. All ranks together.

    What cannot be read or written is said in the log, and in the evidence as far as there is one.
    """
    heartbeat.phase("save")
    parameters = measure_states(run.engine)
    if not run.ranks.is_first:
        return
    folder = evidence_folder(run.folder, divergence.at_step, rewinds=len(guard.rewinds))
    window = describe_window(run.stream, run.tokenizer, divergence)
    evidence = {"version": VERSION, "decision": decision, **describe_judgement(guard, divergence)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / EVIDENCE_FILE, evidence | {"samples": window, "parameters": parameters})
    except OSError as error:  # the divergence is what has to be told
        logger.warning("the evidence could not be written to %s: %s", folder, error)
    sources = ", ".join(f"{count} of {name}" for name, count in window["sources"].items())
    logger.warning(
        "diverged at step %d: %s\n  samples in question: %d to %d (%s)\n  evidence: %s",
        divergence.at_step,
        divergence.why,
        window["first"],
        window["first"] + window["count"] - 1,
        sources,
        folder / EVIDENCE_FILE,
    )


def evidence_folder(run_folder: Path, step: int, *, rewinds: int) -> Path:
    """Folder of a divergence; differs by branch, and is the same again after a kill."""
    branch = f"-after-{rewinds}-rewinds" if rewinds else ""
    return run_folder / EVIDENCE_FOLDER / (step_name(step) + branch)


def describe_judgement(guard: Guard, divergence: Divergence) -> dict[str, Any]:
    """Why, by which thresholds, after which steps."""
    limits = divergence.limits
    return {
        "why": divergence.why,
        "at_step": divergence.at_step,
        "not_after_step": divergence.not_after_step,
        "thresholds": {
            "config": guard.config.model_dump(mode="json"),
            "limits": None if limits is None else plain_fields(limits),
        },
        "rewinds": [asdict(rewind) for rewind in guard.rewinds],
        "bad_steps": [row.step for row in divergence.bad],
        "steps": [plain_fields(row) for row in divergence.state.recent],
    }


def describe_window(stream: Stream, tokenizer: Tokenizer, divergence: Divergence) -> dict[str, Any]:
    """The samples in question: how many of each source, and the text of some, evenly spread."""
    first, count = divergence.jump_from_n, divergence.jump_samples
    sources, _ = stream.mixture.locate(first, count)
    names = [stream.mixture.names[source] for source in sources.tolist()]
    window: dict[str, Any] = {"first": first, "count": count}
    window["sources"] = dict(sorted(Counter(names).items()))
    shown = np.unique(np.linspace(0, count - 1, min(count, MAX_SAMPLES)).astype(int)).tolist()
    try:
        window["texts"] = [
            {"n": first + i, "source": names[i], "text": _text_of(stream, tokenizer, first + i)}
            for i in shown
        ]
    except (LmscaleError, OSError) as error:
        window["problem"] = f"the samples cannot be read: {error}"
        logger.warning("the evidence is without the samples' text: %s", error)
    return window


def _text_of(stream: Stream, tokenizer: Tokenizer, n: int) -> str:
    rows = stream.read_rows(n, 1)
    # A character has at most 4 bytes, and a token stands for at least one of them.
    tokens = rows.tokens[0, : min(rows.lengths[0], 4 * MAX_TEXT)]
    return tokenizer.decode(tokens)[:MAX_TEXT]


def measure_states(engine: Engine) -> dict[str, dict[str, Any]]:
    """Of every parameter its ``elements``, and of its weight and states, whole, over all ranks, the
    ``norms`` of the finite elements and the number of ``nonfinite`` ones. All ranks together.
    """
    sums: dict[tuple[str, str], np.ndarray] = {}  # squares, elements not finite, elements
    try:
        for fragment in owned_fragments(engine):
            for kind, tensor in fragment.tensors.items():
                key = (fragment.parameter, kind)
                sums[key] = sums.get(key, np.zeros(3)) + _measure(tensor)
            heartbeat.tick()
    except LmscaleError as error:  # on all ranks alike; and the others wait below
        logger.warning("the evidence is without the parameters' norms: %s", error)
    # A rank knows the kinds of what it owns; small, and the same order for all of them.
    keys = sorted({(name, kind) for rows in gather_json(list(sums)) for name, kind in rows})
    totals = sum_float64([value for key in keys for value in sums.get(key, np.zeros(3)).tolist()])
    states: dict[str, dict[str, Any]] = {name: {} for name in parameter_shapes(engine)}
    for number, (name, kind) in enumerate(keys):
        squares, nonfinite, elements = totals[3 * number : 3 * number + 3]
        state = states.setdefault(name, {})
        state["elements"] = int(elements)
        state.setdefault("norms", {})[kind] = plain(math.sqrt(squares))
        state.setdefault("nonfinite", {})[kind] = int(nonfinite)
    return {name: state for name, state in states.items() if state}


@torch.no_grad()
def _measure(tensor: Tensor) -> np.ndarray:
    """Sum of squares of the finite elements, how many are not finite, and how many there are."""
    squares = nonfinite = 0.0
    for chunk in tensor.reshape(-1).split(CHUNK):
        is_finite = torch.isfinite(chunk)
        finite = torch.where(is_finite, chunk, torch.zeros_like(chunk)).double()
        squares += float(finite.square().sum())
        nonfinite += float((~is_finite).sum())
    return np.array([squares, nonfinite, tensor.numel()])
