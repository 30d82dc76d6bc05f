"""All checkpoints of a run at one look, why each is kept, and what a person may remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lmscale.checkpoint.find import Undone, nothing_undone
from lmscale.checkpoint.layout import find_gaps
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.retention import (
    TORN,
    UNDONE,
    Listed,
    Rule,
    Spare,
    find_reasons,
    look_at,
    plan_retention,
    spare_none,
)


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

    ``advance`` is called with the bytes of each file that was looked at.
    """
    if saved.manifest is None:
        return list(saved.problems)
    problems = []
    for entry in saved.manifest.files:
        damage = place.describe_damage(saved.step, entry)
        if damage is not None:
            problems.append(f"{damage}.")
        advance(entry.bytes)
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
