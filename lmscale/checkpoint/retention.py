"""Which checkpoints are kept: the newest, every n steps, the best by a figure, those asked for.

And those that the run itself would go back to, which a ``Spare`` names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmscale.checkpoint.commit_log import record_removals
from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.manifest import ASKED, Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.config.safety import CheckpointConfig
from lmscale.errors import CheckpointError, RefusedError
from lmscale.runs.trackers import METRICS_FILE

logger = logging.getLogger(__name__)

Spare = Callable[[Sequence[int], int], Mapping[str, Sequence[int]]]
"""What is kept beside the rule: from the good steps, and the newest that the run has committed, to
reason → steps.
"""


def spare_none(steps: Sequence[int], newest: int) -> Mapping[str, Sequence[int]]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A committed checkpoint, as far as its manifest tells."""

    step: int
    is_good: bool = True
    """It is finite, its manifest can be read, and it is of the run's history."""
    is_asked: bool = False
    """A person asked for this save; it is kept until a person removes it."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which checkpoints of a run are kept."""

    keep_last: int
    keep_every_steps: int = 0
    best_steps: frozenset[int] = frozenset()


def plan_retention(candidates: Iterable[Candidate], rule: Rule, *, newest: int) -> tuple[int, ...]:
    """The steps to delete once ``newest`` is the last that the run has committed.

    Every step after ``newest`` goes, also one that was asked for: the run was resumed from before
    it, so it belongs to steps that were undone, and would pass for how far the run has come. Of the
    others stay the ``keep_last`` newest good ones and what is newer than the oldest of these, the
    multiples of ``keep_every_steps``, the best, and those asked for. So the newest good one never
    goes.
    """
    ordered = sorted(candidates, key=lambda candidate: -candidate.step)
    undone = [candidate.step for candidate in ordered if candidate.step > newest]
    past = [candidate for candidate in ordered if candidate.step <= newest]
    good = [candidate.step for candidate in past if candidate.is_good][: rule.keep_last]
    oldest_kept = good[-1] if good else 0
    return (
        *undone,
        *(
            candidate.step
            for candidate in past
            if candidate.step < oldest_kept
            and not (candidate.is_asked or _is_chosen(candidate.step, rule))
        ),
    )


def _is_chosen(step: int, rule: Rule) -> bool:
    """Whether the checkpoint of ``step`` is kept without a look at its manifest."""
    every = rule.keep_every_steps
    return (every > 0 and step % every == 0) or step in rule.best_steps


def find_best(
    figures: Mapping[int, float], steps: Iterable[int], *, count: int, mode: str
) -> frozenset[int]:
    """The steps, of those that have a figure, with the best ones; of equal ones the earlier."""
    sign = 1.0 if mode == "min" else -1.0
    measured = sorted((sign * figures[step], step) for step in set(steps) if step in figures)
    return frozenset(step for _, step in measured[:count])


def read_figures(run_folder: Path, metric: str) -> dict[int, float]:
    """Step → the figure of that name in ``metrics.jsonl``, where it is a finite number."""
    figures: dict[int, float] = {}
    name = json.dumps(metric, ensure_ascii=False).encode()
    try:
        with open(run_folder / METRICS_FILE, "rb") as file:
            # Most lines have no such figure, and a long run has many.
            lines = [line for line in file if name in line and line.endswith(b"\n")]
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            row = json.loads(line)
            value = row.get(metric)
            if value is not None:  # null is what was not finite
                figures[int(row["step"])] = float(value)
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s holds a line that is not a row: passed over", METRICS_FILE)
    return figures


def plan_rule(config: CheckpointConfig, steps: Sequence[int], run_folder: Path) -> Rule:
    """The rule for these committed steps, with what ``keep_best`` makes of the run's figures."""
    best = config.keep_best
    figures = read_figures(run_folder, best.metric) if best.metric else {}
    return Rule(
        keep_last=config.keep_last,
        keep_every_steps=config.keep_every_steps,
        best_steps=find_best(figures, steps, count=best.count, mode=best.mode),
    )


def look_at(
    place: Place, step: int, undone: Callable[[Manifest], str | None] = lambda manifest: None
) -> Candidate:
    """A committed checkpoint as retention sees it. Raises the errors of ``load_manifest``."""
    try:
        manifest = load_manifest(place, step)
    except RefusedError:
        raise
    except CheckpointError:
        return Candidate(step=step, is_good=False)
    is_good = manifest.is_finite and undone(manifest) is None
    return Candidate(step=step, is_good=is_good, is_asked=manifest.reason == ASKED)


def delete_old_checkpoints(
    place: Place,
    config: CheckpointConfig,
    run_folder: Path,
    *,
    newest: int,
    look: Callable[[Place, int], Candidate] = look_at,
    spare: Spare = spare_none,
) -> tuple[int, ...]:
    """Apply the retention rule, and clear away what interrupted saves and deletions left.

    Rank 0 calls this alone, after it committed a good checkpoint of step ``newest``. ``look`` tells
    what a step's is worth. Returns the steps of the checkpoints that went.
    """
    steps = place.list_steps()
    planned = _plan(place, config, run_folder, steps, newest=newest, look=look)
    spared = _find_spared(place, steps, spare, newest=newest, look=look)
    doomed = tuple(step for step in planned if step not in spared)
    remove(run_folder, place, doomed)
    for step in place.list_steps(committed=False):
        if step in doomed or step < newest:  # a later one may be a save under way
            place.delete(step)
    return doomed


def free_space(
    place: Place,
    config: CheckpointConfig,
    run_folder: Path,
    *,
    saving: int,
    look: Callable[[Place, int], Candidate] = look_at,
    spare: Spare = spare_none,
) -> tuple[int, ...]:
    """Make room for the checkpoint of step ``saving`` on a full disk; returns the steps that went.

    Interrupted saves go, and all checkpoints except the newest good one, newer ones, those kept for
    good, and those that ``spare`` names. Where no other can go, the oldest spared checkpoint goes:
    one makes room for one.
    """
    torn = [step for step in place.list_steps(committed=False) if step != saving]
    steps = [step for step in place.list_steps() if step != saving]
    only_one = config.model_copy(update={"keep_last": 1})
    planned = _plan(place, only_one, run_folder, steps, newest=saving, look=look)
    spared = _find_spared(place, steps, spare, newest=saving, look=look)
    doomed = tuple(step for step in planned if step not in spared)
    if not torn and not doomed:
        doomed = tuple(sorted(planned)[:1])
    for step in torn:
        place.delete(step)
    remove(run_folder, place, doomed)
    return (*torn, *doomed)


def remove(run_folder: Path, place: Place, steps: Sequence[int]) -> None:
    """Remove committed checkpoints of a run, and say so in its ``commits.jsonl`` before."""
    record_removals(run_folder, steps)
    for step in steps:
        place.delete(step)


def _find_spared(
    place: Place,
    steps: Sequence[int],
    spare: Spare,
    *,
    newest: int,
    look: Callable[[Place, int], Candidate],
) -> set[int]:
    """The good checkpoints that ``spare`` names; only named checkpoints are looked at."""
    rest = [step for step in steps if step <= newest]
    while True:
        named = {step for chosen in spare(rest, newest).values() for step in chosen if step in rest}
        unfit = {step for step in named if not look(place, step).is_good}
        if not unfit:
            return named
        rest = [step for step in rest if step not in unfit]


def _plan(
    place: Place,
    config: CheckpointConfig,
    run_folder: Path,
    steps: Sequence[int],
    *,
    newest: int,
    look: Callable[[Place, int], Candidate],
) -> tuple[int, ...]:
    rule = plan_rule(config, steps, run_folder)
    candidates: list[Candidate] = []
    for step in sorted(steps, reverse=True):
        # Its manifest is read only where it decides: a remote place is asked for each.
        num_good = sum(c.is_good for c in candidates if c.step <= newest)
        is_clear = step > newest or (num_good >= rule.keep_last and _is_chosen(step, rule))
        candidates.append(Candidate(step=step) if is_clear else look(place, step))
    return plan_retention(candidates, rule, newest=newest)
