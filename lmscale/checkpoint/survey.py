"""All checkpoints of a run at one look, why each is kept, and what a person may remove."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.layout import find_gaps
from lmscale.checkpoint.manifest import ASKED, Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.retention import Candidate, Rule, Spare, plan_retention, spare_none
from lmscale.errors import CheckpointError, RefusedError

COMMITTED, TORN, UNREADABLE, UNDONE = "committed", "torn", "unreadable", "undone"
"""States. Torn: without a manifest, by a save that was cut off or is under way. Unreadable: with
a damaged manifest. Undone: of steps that a rewind, or a resume from before them, has undone.
"""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A folder of one step, as far as its manifest tells; its files are not looked at."""

    step: int
    name: str
    state: str
    manifest: Manifest | None = None
    problems: tuple[str, ...] = ()
    kept_for: tuple[str, ...] = ()
    """``last``, ``every``, ``best``, ``asked``, or what a ``Spare`` says; empty: the next save
    removes it.
    """
    is_spared: bool = False
    """The run itself may go back to it."""

    @property
    def bytes(self) -> int | None:
        """Of its files, without the manifest."""
        return None if self.manifest is None else sum(file.bytes for file in self.manifest.files)

    @property
    def is_good(self) -> bool:
        """Whether a run could go on from it, if its files are whole."""
        return self.state == COMMITTED and self.manifest is not None and self.manifest.is_finite

    @property
    def is_asked(self) -> bool:
        return self.manifest is not None and self.manifest.reason == ASKED


def survey(
    place: Place,
    rule: Rule,
    undone: Callable[[Manifest], str | None] = lambda manifest: None,
    spare: Spare = spare_none,
) -> tuple[Listed, ...]:
    """Every step of a place, the newest first. Raises the errors of ``Place``."""
    listed_steps = [_look_at(place, step, undone) for step in place.list_steps()]
    good = [saved.step for saved in listed_steps if saved.is_good]
    spared = spare(good, good[0]) if good else {}
    last = good[: rule.keep_last]
    for index, saved in enumerate(listed_steps):
        more = [reason for reason, steps in spared.items() if saved.step in steps]
        reasons = (*_reasons(saved, rule, last), *more)
        listed_steps[index] = replace(saved, kept_for=reasons, is_spared=bool(more))
    torn = place.list_steps(committed=False)
    listed_steps += [Listed(step=step, name=place.name_of(step), state=TORN) for step in torn]
    return tuple(sorted(listed_steps, key=lambda saved: -saved.step))


def _look_at(place: Place, step: int, undone: Callable[[Manifest], str | None]) -> Listed:
    name = place.name_of(step)
    try:
        manifest = load_manifest(place, step)
    except RefusedError:  # it may be whole
        raise
    except CheckpointError as error:
        return Listed(step=step, name=name, state=UNREADABLE, problems=error.problems)
    why = undone(manifest)
    if why is None:
        return Listed(step=step, name=name, state=COMMITTED, manifest=manifest)
    return Listed(
        step=step, name=name, state=UNDONE, manifest=manifest, problems=(f"{name}: {why}",)
    )


def _reasons(saved: Listed, rule: Rule, last: Sequence[int]) -> Iterator[str]:
    if saved.step in last:
        yield "last"
    if rule.keep_every_steps and saved.step % rule.keep_every_steps == 0:
        yield "every"
    if saved.step in rule.best_steps:
        yield "best"
    if saved.is_asked:
        yield "asked"


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
    torn = [saved for saved in listed if saved.state == TORN]
    there = [saved for saved in listed if saved.state != TORN]
    candidates = [
        Candidate(
            step=saved.step, is_good=saved.is_good, is_asked=saved.is_asked and not with_asked
        )
        for saved in there
    ]
    newest = max((saved.step for saved in there), default=0)
    doomed = {*plan_retention(candidates, rule, newest=newest)} if candidates else set()
    doomed -= {saved.step for saved in there if saved.is_spared}
    undone = [
        saved
        for saved in there
        if saved.state == UNDONE and saved.step not in doomed and (with_asked or not saved.is_asked)
    ]
    return tuple(
        sorted([*torn, *undone, *(o for o in there if o.step in doomed)], key=lambda o: -o.step)
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
