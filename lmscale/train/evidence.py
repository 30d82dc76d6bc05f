"""What the guard leaves behind for a person: ``RUN/guard/step-000000123/evidence.json``.

Why it judged as it did, the last steps, the samples in question with their text, and what every
parameter and optimizer state looks like. docs/formats.md names its fields.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lmscale.checkpoint.fragments import Fragment, owned_fragments, parameter_shapes
from lmscale.engine import Engine
from lmscale.engine.step_report import StepReport
from lmscale.errors import GuardError, LmscaleError
from lmscale.files.atomic import write_json
from lmscale.guard.divergence import Divergence
from lmscale.guard.figures import plain
from lmscale.guard.guard import Guard, RewindRequest
from lmscale.ranks.collectives import gather_json, sum_float64
from lmscale.stream.stream import Stream
from lmscale.tokenizer import Tokenizer
from lmscale.watch import heartbeat

if TYPE_CHECKING:
    from lmscale.train.assemble import Run

logger = logging.getLogger(__name__)

EVIDENCE_FOLDER = "guard"
EVIDENCE_FILE = "evidence.json"
VERSION = 1
MAX_SAMPLES = 64
MAX_TEXT = 300  # characters of a sample
CHUNK = 1 << 22  # elements looked at at once: the memory may be as good as full
SHOWN = 3  # parameters named in the log


class GuardHook:
    """The guard with its evidence: called after every step, on all ranks.

    What the guard raises is raised, once the evidence is written; it never fails for want of it.
    """

    def __init__(
        self, run: Run, guard: Guard, compare_after: Callable[[int], None] = lambda step: None
    ) -> None:
        """``compare_after``: raises where the ranks differ, once a step is done."""
        self._run = run
        self.guard = guard
        self._compare_after = compare_after

    def __call__(self, report: StepReport) -> None:
        try:
            self.guard(report)
        except (RewindRequest, GuardError) as raised:
            assert self.guard.divergence is not None
            # A rank's wrong memory looks like bad samples, and soon: long before its turn to be
            # compared. A rewind would load what was saved since, and all ranks be wrong alike.
            self._compare_after(report.step)
            decision = "rewind" if isinstance(raised, RewindRequest) else "stop"
            save_evidence(self._run, self.guard, self.guard.divergence, decision=decision)
            raise


def save_evidence(
    run: Run, guard: Guard, divergence: Divergence, *, decision: str
) -> dict[str, Any]:
    """Gather the evidence and write it. All ranks together; returns what was gathered.

    What cannot be read or written is said in the log, and in the evidence as far as there is one.
    """
    heartbeat.phase("save")
    states = measure_states(run.engine)
    if not run.ranks.is_first:
        return {}
    folder = evidence_folder(run.folder, divergence.at_step, rewinds=len(guard.rewinds))
    evidence = {
        "version": VERSION,
        "decision": decision,
        **describe_judgement(guard, divergence),
        "samples": describe_window(run.stream, run.tokenizer, divergence),
        "parameters": {name: state.to_json() for name, state in states.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / EVIDENCE_FILE, evidence)
    except OSError as error:  # the divergence is what has to be told
        logger.warning("the evidence could not be written to %s: %s", folder, error)
    logger.warning("%s", render_summary(divergence, evidence["samples"], states, folder))
    return evidence


def change_decision(run_folder: Path, divergence: Divergence, rewinds: int, decision: str) -> None:
    """Where it turned out otherwise behind the evidence: no checkpoint was old enough. Rank 0."""
    folder = evidence_folder(run_folder, divergence.at_step, rewinds=rewinds)
    try:
        write_json(folder / EVIDENCE_FILE, load_evidence(folder) | {"decision": decision})
    except (OSError, ValueError) as error:
        logger.warning("the evidence in %s could not be corrected: %s", folder, error)


def evidence_folder(run_folder: Path, step: int, *, rewinds: int) -> Path:
    """Another one for the same step on another branch, the same for a run that was killed in it."""
    branch = f"-after-{rewinds}-rewinds" if rewinds else ""
    return run_folder / EVIDENCE_FOLDER / f"step-{step:09d}{branch}"


def describe_judgement(guard: Guard, divergence: Divergence) -> dict[str, Any]:
    """Why, by which thresholds, after which steps."""
    limits = None if divergence.limits is None else asdict(divergence.limits)
    return {
        "why": divergence.why,
        "at_step": divergence.at_step,
        "not_after_step": divergence.not_after_step,
        "thresholds": {
            "config": guard.config.model_dump(mode="json"),
            "limits": limits and {key: plain(value) for key, value in limits.items()},
        },
        "rewinds": [rewind.to_json() for rewind in guard.rewinds],
        "bad_steps": [row.step for row in divergence.bad],
        "steps": [row.to_json() for row in divergence.state.recent],
    }


def describe_window(stream: Stream, tokenizer: Tokenizer, divergence: Divergence) -> dict[str, Any]:
    """The samples in question: how many of each source, and the text of some of them."""
    first, count = divergence.jump_from_n, divergence.jump_samples
    sources, _ = stream.mixture.locate(first, count)
    names = [stream.mixture.names[source] for source in sources.tolist()]
    window: dict[str, Any] = {
        "first": first,
        "count": count,
        "sources": dict(sorted(Counter(names).items())),
    }
    try:
        window["texts"] = [
            {"n": n, "source": names[n - first], "text": _text_of(stream, tokenizer, n)}
            for n in spread(first, count, MAX_SAMPLES)
        ]
    except (LmscaleError, OSError) as error:
        window["problem"] = f"the samples cannot be read: {error}"
        logger.warning("the evidence is without the samples' text: %s", error)
    return window


def spread(first: int, count: int, most: int) -> list[int]:
    """At most so many of the numbers first, first + 1, …, evenly, both ends included."""
    return np.unique(np.linspace(first, first + count - 1, min(count, most)).astype(int)).tolist()


def _text_of(stream: Stream, tokenizer: Tokenizer, n: int) -> str:
    (window,) = stream.read(n, 1)
    # A character has at most 4 bytes, and a token stands for at least one of them.
    tokens = window.tokens[: min(window.length, 4 * MAX_TEXT)]
    return tokenizer.decode(tokens)[:MAX_TEXT]


@dataclass(frozen=True, kw_only=True)
class ParameterState:
    """A parameter and its optimizer states, whole, over all ranks."""

    elements: int
    norms: Mapping[str, float]  # kind → root of the sum of squares of its finite elements
    nonfinite: Mapping[str, int]  # kind → elements that are not finite

    def rms(self, kind: str) -> float:
        return self.norms[kind] / math.sqrt(max(1, self.elements))

    def to_json(self) -> dict[str, Any]:
        return {
            "elements": self.elements,
            "norms": {kind: plain(value) for kind, value in self.norms.items()},
            "nonfinite": dict(self.nonfinite),
        }


def measure_states(engine: Engine) -> dict[str, ParameterState]:
    """Norms and counts of all that a checkpoint would hold, by parameter. All ranks together."""
    mine: dict[tuple[str, str], tuple[float, float, float]] = {}
    try:
        for fragment in owned_fragments(engine):
            _add_fragment(mine, fragment)
            heartbeat.tick()
    except LmscaleError as error:  # on all ranks alike; and the others wait below
        logger.warning("the evidence is without the parameters' norms: %s", error)
    # A rank knows the kinds of what it owns; small, and the same order for all of them.
    known = sorted({(name, kind) for rows in gather_json(list(mine)) for name, kind in rows})
    summed = sum_float64([value for key in known for value in mine.get(key, (0.0, 0.0, 0.0))])
    shapes = parameter_shapes(engine)
    rows: dict[str, dict[str, tuple[float, float, float]]] = {}
    for number, (name, kind) in enumerate(known):
        squares, nonfinite, elements = summed[3 * number : 3 * number + 3]
        rows.setdefault(name, {})[kind] = (squares, nonfinite, elements)
    order = {name: number for number, name in enumerate(shapes)}
    return {
        name: ParameterState(
            elements=int(max(elements for _, _, elements in kinds.values())),
            norms={kind: math.sqrt(squares) for kind, (squares, _, _) in kinds.items()},
            nonfinite={kind: int(count) for kind, (_, count, _) in kinds.items()},
        )
        for name, kinds in sorted(rows.items(), key=lambda item: order.get(item[0], len(order)))
    }


def _add_fragment(
    sums: dict[tuple[str, str], tuple[float, float, float]], fragment: Fragment
) -> None:
    for kind, tensor in fragment.tensors.items():
        squares, nonfinite = _measure(tensor)
        before = sums.get((fragment.parameter, kind), (0.0, 0.0, 0.0))
        sums[fragment.parameter, kind] = (
            before[0] + squares,
            before[1] + nonfinite,
            before[2] + tensor.numel(),
        )


@torch.no_grad()
def _measure(tensor: Tensor) -> tuple[float, float]:
    """Sum of squares of the finite elements, and how many are not."""
    squares = nonfinite = 0.0
    for chunk in tensor.reshape(-1).split(CHUNK):
        is_finite = torch.isfinite(chunk)
        kept = torch.where(is_finite, chunk, torch.zeros_like(chunk)).double()
        squares += float(kept.square().sum())
        nonfinite += float((~is_finite).sum())
    return squares, nonfinite


def find_conspicuous(states: Mapping[str, ParameterState]) -> list[str]:
    """The parameters to look at first, most conspicuous first, with the reason.

    Those with elements that are not finite; then those whose first optimizer state, which follows
    the gradient, is largest by its mean square: Adam divides it out of the update, not out of the
    norm that is clipped.
    """
    broken = [
        f"{name} has {count:,} of {state.elements:,} elements of its {kind} not finite"
        for name, state in states.items()
        for kind, count in state.nonfinite.items()
        if count
    ]
    gradients = [
        (state.rms(kind), name, kind)
        for name, state in states.items()
        for kind in state.norms
        if kind in ("exp_avg", "momentum_buffer")
    ]
    gradients.sort(key=lambda row: (-row[0], row[1]))
    largest = [f"{name} has the {kind} {rms:.3g} (RMS)" for rms, name, kind in gradients[:SHOWN]]
    return [*broken[:SHOWN], *_more(len(broken) - SHOWN), *largest]


def _more(count: int) -> list[str]:
    return [f"{count:,} more states are not finite"] if count > 0 else []


def render_summary(
    divergence: Divergence,
    window: Mapping[str, Any],
    states: Mapping[str, ParameterState],
    folder: Path,
) -> str:
    """What the log says, in a few lines."""
    sources = ", ".join(f"{count} of {name}" for name, count in window["sources"].items())
    lines = [
        f"diverged at step {divergence.at_step}: {divergence.why}",
        f"  samples in question: {window['first']} to {window['first'] + window['count'] - 1} "
        f"({sources})",
        *(f"  {line}" for line in find_conspicuous(states)),
        f"  evidence: {folder / EVIDENCE_FILE}",
    ]
    return "\n".join(lines)


def load_evidence(folder: str | Path) -> dict[str, Any]:
    """The evidence in a folder that ``save_evidence`` wrote."""
    return json.loads((Path(folder) / EVIDENCE_FILE).read_text(encoding="utf-8"))
