"""Which checkpoints are kept: the newest, every n steps, the best by a figure, those asked for, and
those that another run learns from.

And those that the run itself would go back to, which a ``Spare`` names. ``survey`` tells a person
why each is kept, ``plan_prune`` what may be removed by hand.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from lmscale.checkpoint.commit_log import record_commit, record_removals
from lmscale.checkpoint.find import Undone, load_manifest, nothing_undone
from lmscale.checkpoint.layout import find_gaps
from lmscale.checkpoint.manifest import ASKED, Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.config.safety import CheckpointConfig
from lmscale.errors import CheckpointError, RefusedError
from lmscale.files.jsonl import sift_rows, unreadable
from lmscale.files.meter import metered
from lmscale.files.run_files import METRICS_FILE
from lmscale.files.run_rows import AT_END, FIGURES, OF_AVERAGE
from lmscale.runs.commits import read_commits
from lmscale.runs.students import read_students

logger = logging.getLogger(__name__)

# What is kept beside the rule: (the good steps, the newest that is committed) → reason → steps.
Spare = Callable[[Sequence[int], int], Mapping[str, Sequence[int]]]


def spare_none(steps: Sequence[int], newest: int) -> Mapping[str, Sequence[int]]:
    return {}


# Torn: without a manifest, by a save that was cut off or is under way. Unreadable: with a damaged
# manifest. Undone: of steps that a rewind, or a resume from before them, has undone.
COMMITTED, TORN, UNREADABLE, UNDONE = "committed", "torn", "unreadable", "undone"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A committed checkpoint, as the rule sees it."""

    step: int
    # A run could go on from it, if its files are whole: it is finite, readable, and of its history.
    is_good: bool
    is_asked: bool = False  # a person asked for this save; it is kept until a person removes it


@dataclass(frozen=True, kw_only=True)
class Listed(Candidate):
    """A folder of one step, as far as its manifest tells; its files are not looked at."""

    name: str
    state: str
    manifest: Manifest | None = None
    problems: tuple[str, ...] = ()
    # last, every, best, asked, teacher, or what a ``Spare`` says; empty: the next save removes it
    kept_for: tuple[str, ...] = ()
    is_spared: bool = False  # the run itself may go back to it

    @property
    def bytes(self) -> int | None:
        """Of its files, without the manifest."""
        return None if self.manifest is None else sum(file.bytes for file in self.manifest.files)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which checkpoints of a run are kept."""

    keep_last: int
    keep_every_steps: int = 0
    best_steps: frozenset[int] = frozenset()
    teacher_steps: frozenset[int] = frozenset()  # that distillations cannot go on without


def plan_retention(candidates: Iterable[Candidate], rule: Rule, *, newest: int) -> tuple[int, ...]:
    """The steps to delete once ``newest`` is the last that the run has committed.

    Every step after ``newest`` goes, also one that was asked for: the run was resumed from before
    it, so it belongs to steps that were undone, and would pass for how far the run has come. Of the
    others stay those with a reason (``find_reasons``), and what is newer than the oldest of the
    last good ones. So the newest good one never goes.
    """
    ordered = sorted(candidates, key=lambda candidate: -candidate.step)
    undone = [candidate.step for candidate in ordered if candidate.step > newest]
    past = [candidate for candidate in ordered if candidate.step <= newest]
    last = [candidate.step for candidate in past if candidate.is_good][: rule.keep_last]
    oldest_kept = last[-1] if last else 0
    doomed = [
        candidate.step
        for candidate in past
        if candidate.step < oldest_kept and not find_reasons(candidate, rule, last)
    ]
    return (*undone, *doomed)


def find_reasons(candidate: Candidate, rule: Rule, last: Collection[int] = ()) -> list[str]:
    """Why the rule keeps a checkpoint; ``last``: the steps of the newest good ones."""
    step, every = candidate.step, rule.keep_every_steps
    reasons = {
        "last": step in last,
        "every": every > 0 and step % every == 0,
        "best": step in rule.best_steps,
        "asked": candidate.is_asked,
        "teacher": step in rule.teacher_steps,
    }
    return [reason for reason, is_given in reasons.items() if is_given]


def find_best(
    figures: Mapping[int, float], steps: Iterable[int], *, count: int, mode: str
) -> frozenset[int]:
    """The steps, of those that have a figure, with the best ones; of equal ones the earlier."""
    sign = 1.0 if mode == "min" else -1.0
    known = [step for step in set(steps) if math.isfinite(figures.get(step, math.nan))]
    measured = sorted((sign * figures[step], step) for step in known)
    return frozenset(step for _, step in measured[:count])


def find_kept_best(config: CheckpointConfig, run_folder: Path) -> int | None:
    """The step of the best checkpoint that a run keeps by ``keep_best``; None: it keeps none, or
    has measured none of those that are there.
    """
    best = config.keep_best
    if not best.metric:
        return None
    steps = [commit.step for commit in read_commits(run_folder)]
    figures = read_figures(run_folder, best.metric)
    return next(iter(find_best(figures, steps, count=1, mode=best.direction)), None)


def read_figures(
    run_folder: Path,
    metric: str,
    *,
    of_average: bool | None = None,
    at_ends: bool = True,
    is_needed: bool = False,
) -> dict[int, float]:
    """Step → the figure of that name in ``metrics.jsonl``; NaN where it was not finite.

    Those of the average of the weights or those of the trained ones, as ``of_average`` says, or
    else as the newest one is: they are not to be compared.
    Without ``at_ends`` those are left out that were measured because the run ended there.
    A file that cannot be read has none; where that ``is_needed``, ``TransientError`` or
    ``DataError`` is raised.
    """
    sifted = sift_rows(run_folder / METRICS_FILE, FIGURES, having=metric)
    if is_needed and sifted.failure is not None:
        raise unreadable(run_folder / METRICS_FILE, sifted.failure)
    for problem in sifted.problems:
        logger.warning("%s/%s", run_folder, problem)
    rows = [row for row in sifted.rows if metric in row]
    mark, end = (f"{metric.partition('/')[0]}/{each}" for each in (OF_AVERAGE, AT_END))
    rows = [row for row in rows if at_ends or end not in row]
    if of_average is None:
        of_average = bool(rows) and mark in rows[-1]
    rows = [row for row in rows if (mark in row) == of_average]
    return {row["step"]: math.nan if row[metric] is None else row[metric] for row in rows}


def plan_rule(config: CheckpointConfig, steps: Sequence[int], run_folder: Path) -> Rule:
    """The rule for these committed steps, with what ``keep_best`` makes of the run's figures, and
    the run's students.
    """
    best = config.keep_best
    figures = read_figures(run_folder, best.metric) if best.metric else {}
    return Rule(
        keep_last=config.keep_last,
        keep_every_steps=config.keep_every_steps,
        best_steps=find_best(figures, steps, count=best.count, mode=best.direction),
        teacher_steps=frozenset(row["step"] for row in read_students(run_folder)),
    )


def look_at(place: Place, step: int, undone: Undone = nothing_undone) -> Listed:
    """A committed checkpoint by its manifest. Raises ``RefusedError`` and ``TransientError``."""
    name = place.name_of(step)
    try:
        manifest = load_manifest(place, step)
    except RefusedError:
        raise
    except CheckpointError as error:
        problems = error.problems
        return Listed(step=step, name=name, state=UNREADABLE, is_good=False, problems=problems)
    why = undone(manifest)
    return Listed(
        step=step,
        name=name,
        state=COMMITTED if why is None else UNDONE,
        is_good=manifest.is_finite and why is None,
        is_asked=manifest.reason == ASKED,
        manifest=manifest,
        problems=() if why is None else (f"{name}: {why}",),
    )


class Retention:
    """Keeps a run's checkpoints to the rule, and its ``commits.jsonl`` in step with them.

    Rank 0's writer alone uses it. ``passed_over``: the steps whose checkpoints this start has found
    to be no good, though their manifests are.
    """

    def __init__(
        self,
        place: Place,
        config: CheckpointConfig,
        run_folder: Path,
        *,
        undone: Undone = nothing_undone,
        passed_over: Collection[int] = (),
        spare: Spare = spare_none,
    ) -> None:
        self._place, self._config, self._run_folder = place, config, run_folder
        self._undone, self._passed_over, self._spare = undone, passed_over, spare
        self._looks: dict[int, Candidate] = {}

    def replace(self, step: int) -> None:
        """Before a save clears away a committed checkpoint of its own step, which a rewind has
        undone: the old row would vouch for the new files.
        """
        if any(commit.step == step for commit in read_commits(self._run_folder)):
            record_removals(self._run_folder, [step])

    def tidy(self, manifest: Manifest) -> None:
        """After a commit: its row, and the checkpoints that the rule keeps no longer."""
        record_commit(self._run_folder, self._place, manifest)
        self._looks[manifest.step] = Candidate(
            step=manifest.step, is_good=manifest.is_finite, is_asked=manifest.reason == ASKED
        )
        if manifest.is_finite:  # else no run goes on from it: it may push no good one out
            self.delete_old(newest=manifest.step)

    def delete_old(self, *, newest: int) -> tuple[int, ...]:
        """Apply the rule, once a good checkpoint of step ``newest`` is committed, and clear away
        what interrupted saves and deletions left. Returns the steps of the checkpoints that went.
        """
        _, doomed = self._plan(self._place.list_steps(), self._config, newest=newest)
        remove(self._run_folder, self._place, doomed)
        for step in self._place.list_steps(committed=False):
            if step in doomed or step < newest:  # a later one may be a save under way
                self._place.delete(step)
        return doomed

    def free_space(self, *, saving: int) -> tuple[int, ...]:
        """Make room for the checkpoint of step ``saving`` on a full disk; the steps that went.

        Interrupted saves go, and all checkpoints except the newest good one, newer ones, those kept
        for good, and those that ``spare`` names. Where no other can go, the oldest spared
        checkpoint goes: one makes room for one.
        """
        torn = [step for step in self._place.list_steps(committed=False) if step != saving]
        steps = [step for step in self._place.list_steps() if step != saving]
        only_one = self._config.model_copy(update={"keep_last": 1})
        planned, doomed = self._plan(steps, only_one, newest=saving)
        if not torn and not doomed:
            doomed = tuple(sorted(planned)[:1])
        for step in torn:
            self._place.delete(step)
        remove(self._run_folder, self._place, doomed)
        return (*torn, *doomed)

    def _find_spared(self, steps: Sequence[int], *, newest: int) -> set[int]:
        """The good checkpoints that ``spare`` names; only named checkpoints are looked at."""
        rest = [step for step in steps if step <= newest]
        while True:
            chosen = chain.from_iterable(self._spare(rest, newest).values())
            named = {step for step in chosen if step in rest}
            unfit = {step for step in named if not self._look(step).is_good}
            if not unfit:
                return named
            rest = [step for step in rest if step not in unfit]

    def _plan(
        self, steps: Sequence[int], config: CheckpointConfig, *, newest: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the rule would remove, and what of that ``spare`` does not keep."""
        rule = plan_rule(config, steps, self._run_folder)
        candidates: list[Candidate] = []
        for step in sorted(steps, reverse=True):
            # Its manifest is read only where it decides: a remote place is asked for each.
            num_good = sum(c.is_good for c in candidates if c.step <= newest)
            unseen = Candidate(step=step, is_good=True)
            is_kept = num_good >= rule.keep_last and bool(find_reasons(unseen, rule))
            candidates.append(unseen if is_kept or step > newest else self._look(step))
        planned = plan_retention(candidates, rule, newest=newest)
        spared = self._find_spared(steps, newest=newest)
        return planned, tuple(step for step in planned if step not in spared)

    def _look(self, step: int) -> Candidate:
        """As ``look_at`` sees it, once a step."""
        if step not in self._looks:
            seen = look_at(self._place, step, self._undone)
            is_good = seen.is_good and step not in self._passed_over
            self._looks[step] = Candidate(step=step, is_good=is_good, is_asked=seen.is_asked)
        return self._looks[step]


def remove(run_folder: Path, place: Place, steps: Sequence[int]) -> None:
    """Remove committed checkpoints of a run, and say so in its ``commits.jsonl`` before."""
    record_removals(run_folder, steps)
    for step in steps:
        place.delete(step)


def survey(
    place: Place, rule: Rule, undone: Undone = nothing_undone, spare: Spare = spare_none
) -> tuple[Listed, ...]:
    """Every step of a place, the newest first. Raises the errors of ``Place``."""
    listed_steps = [look_at(place, step, undone) for step in place.list_steps()]
    good = [saved.step for saved in listed_steps if saved.is_good]
    spared = spare(good, good[0]) if good else {}
    last = good[: rule.keep_last]
    for index, saved in enumerate(listed_steps):
        more = [reason for reason, steps in spared.items() if saved.step in steps]
        reasons = (*find_reasons(saved, rule, last), *more)
        listed_steps[index] = replace(saved, kept_for=reasons, is_spared=bool(more))
    torn = place.list_steps(committed=False)
    listed_steps += [
        Listed(step=step, name=place.name_of(step), state=TORN, is_good=False) for step in torn
    ]
    return tuple(sorted(listed_steps, key=lambda saved: -saved.step))


def find_problems(
    place: Place, saved: Listed, advance: Callable[[float], None] = lambda size: None
) -> list[str]:
    """What is wrong with a committed checkpoint, every file read; empty: nothing.

    ``advance`` hears of the bytes that were looked at.
    """
    if saved.manifest is None:
        return list(saved.problems)
    problems = []
    for entry in saved.manifest.files:
        with metered(entry.bytes, advance):
            damage = place.describe_damage(saved.step, entry)
        if damage is not None:
            problems.append(f"{damage}.")
    return problems + [f"{saved.name}: {gap}." for gap in find_gaps(saved.manifest)]


def plan_prune(
    listed: Sequence[Listed], rule: Rule, *, with_asked: bool = False
) -> tuple[Listed, ...]:
    """What a person may remove: all that the rule does not keep, the undone, and the torn.

    Those asked for stay unless ``with_asked``. The newest that a run could go on from never goes,
    nor what it may go back to.
    """
    there = [saved for saved in listed if saved.state != TORN]
    candidates = [replace(saved, is_asked=saved.is_asked and not with_asked) for saved in there]
    newest = max((saved.step for saved in there), default=0)
    by_rule = plan_retention(candidates, rule, newest=newest)
    return tuple(
        saved
        for saved in listed
        if saved.state == TORN
        or (saved.step in by_rule and not saved.is_spared)
        or (saved.state == UNDONE and (with_asked or not saved.is_asked))
    )


def spare_a_sound_one(
    place: Place,
    listed: Sequence[Listed],
    doomed: Sequence[Listed],
    advance: Callable[[float], None] = lambda size: None,
) -> tuple[tuple[Listed, ...], Listed | None]:
    """``doomed`` without the newest checkpoint whose files are whole, unless a newer one stays.

    A manifest looks good even if the disk has lost its files; only reading shows that. Returns also
    the checkpoint that was read and is whole. None: no committed checkpoint goes, as a person may
    want to mend one.
    """
    for saved in listed:
        if saved.is_good and not find_problems(place, saved, advance):
            return tuple(other for other in doomed if other.step != saved.step), saved
    if any(saved.state != TORN for saved in listed):
        return (), None
    return tuple(doomed), None
