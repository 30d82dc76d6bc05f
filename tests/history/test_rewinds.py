"""The rows of rewinds.jsonl decide: whatever is killed when, the run uses the same samples."""

import json
import math
import random
import resource
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.checkpoint.find import PassedOver
from lmscale.errors import DataError, NoSpaceError
from lmscale.guard.divergence import Divergence, describe_no_checkpoint, plan_rewind
from lmscale.guard.state import GuardState
from lmscale.history.history import Rewind, is_undone, pending_jumps, read_rewinds, record_rewind
from lmscale.stream.mixture import Jump, Mixture, Segment, append_segment, jump_window

QUOTAS, OTHER = {"a": 11, "b": 5}, {"a": 4, "b": 9, "c": 3}
G = 4  # samples of a step


def rewind(number=1, **changes) -> Rewind:
    values = {
        "number": number,
        "at_step": 30,
        "to_step": 10,
        "to_n": 40,
        "jump_from_n": 56,
        "jump_samples": 64,
        "why": "3 steps in a row were not finite",
        "time": 1.5,
    }
    return Rewind(**(values | changes))


def divergence(**changes) -> Divergence:
    values = {
        "why": "a test",
        "at_step": 30,
        "jump_from_n": 56,
        "jump_samples": 64,
        "not_after_step": 14,
        "limits": None,
        "state": GuardState(),
    }
    return Divergence(**(values | changes))


# The record


def test_rows_are_read_back_as_they_were_written(tmp_path):
    assert read_rewinds(tmp_path) == ()
    segments = append_segment((), n=0, seed=1, quotas=QUOTAS, fingerprints={"a": "12"})
    segments = jump_window(segments, start=40, samples=5)
    rows = (
        rewind(1),
        rewind(2, why="Ärger \"'\n", segments=segments),
        rewind(3, to_step=0, to_n=0),
    )
    for row in rows:
        record_rewind(tmp_path, row)
    assert read_rewinds(tmp_path) == rows


def test_a_torn_row_was_never_decided_on_and_the_next_begins_a_line_of_its_own(tmp_path):
    record_rewind(tmp_path, rewind(1))
    path = tmp_path / "rewinds.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole + whole[:length])
        assert read_rewinds(tmp_path) == (rewind(1),)
    record_rewind(tmp_path, rewind(2))
    assert read_rewinds(tmp_path) == (rewind(1), rewind(2))


def test_a_full_disk_leaves_the_rows_that_were_there_and_the_run_resumable(tmp_path):
    record_rewind(tmp_path, rewind(1))
    size = (tmp_path / "rewinds.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(NoSpaceError, match="No space is left in .* rewinds.jsonl"):
            record_rewind(tmp_path, rewind(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_rewinds(tmp_path) == (rewind(1),)
    record_rewind(tmp_path, rewind(2))
    assert read_rewinds(tmp_path) == (rewind(1), rewind(2))


@pytest.mark.parametrize(
    "text",
    [
        '{"number": 1}\n',
        json.dumps({**vars(rewind(2))}) + "\n",
        json.dumps({**vars(rewind(1)), "to_n": 99}) + "\n",
        "nonsense\n",
    ],
)
def test_a_row_that_cannot_stand_there_is_an_error_that_names_the_line(tmp_path, text):
    (tmp_path / "rewinds.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"rewinds.jsonl, line 1: "):
        read_rewinds(tmp_path)


def test_two_processes_do_not_record_the_same_rewind(tmp_path):
    record_rewind(tmp_path, rewind(1))
    with pytest.raises(DataError, match="holds 1 rewinds, so this is not number 1"):
        record_rewind(tmp_path, rewind(1))
    with pytest.raises(DataError, match="not number 3"):
        record_rewind(tmp_path, rewind(3))


# Where to


def test_it_goes_back_to_the_newest_checkpoint_from_before_the_window():
    committed = {step: step * G for step in (4, 10, 14, 15, 30)}
    planned = plan_rewind(divergence(), committed, number=1, time=1.5, segments=())
    assert planned == rewind(1, why="a test", to_step=14, to_n=56)
    # With the batch of half the run: step 14 had used more samples than the window leaves.
    committed[14] = 57
    assert plan_rewind(divergence(), committed, number=1, time=1.5, segments=()).to_step == 10


def test_without_a_checkpoint_that_is_old_enough_there_is_no_rewind():
    committed = {15: 60, 20: 80}
    assert plan_rewind(divergence(), committed, number=1, time=0, segments=()) is None
    assert plan_rewind(divergence(), {}, number=1, time=0, segments=()) is None
    passed_over = [
        PassedOver(step=step, name=f"step-{step}", why=(why,))
        for step, why in ((20, "too new"), (15, "too new"), (10, "step-10/a is missing."))
    ]
    assert (
        "takes a checkpoint of step 14 or before, and sample 56 or before; there are: 10, 15, 20; "
        "step-10/a is missing. Keep more" in describe_no_checkpoint(divergence(), passed_over)
    )
    # To save more often would only push the older ones out sooner.
    newer = describe_no_checkpoint(divergence(), passed_over[:2])
    assert "there are: 15, 20. Keep older ones (checkpoint.keep_every_steps" in newer
    assert "Save" not in newer
    assert "there are: none. Save earlier" in describe_no_checkpoint(divergence(), [])


# Branches


def test_checkpoints_of_an_undone_branch_are_told_from_the_others():
    rewinds = (rewind(1, to_step=10), rewind(2, to_step=12))
    assert is_undone(12, 0, rewinds)
    assert not is_undone(10, 0, rewinds)
    assert not is_undone(12, 1, rewinds)  # what the second one went back to
    assert is_undone(14, 1, rewinds)
    assert not is_undone(14, 2, rewinds)
    assert pending_jumps(rewinds, rewinds_in_history=2) == ()
    assert pending_jumps(rewinds, rewinds_in_history=0) == (Jump(start=56, samples=64),) * 2


def test_a_run_whose_record_was_cut_is_not_gone_on_with():
    with pytest.raises(DataError, match="has 2 rewinds behind it, but rewinds.jsonl .* holds 1"):
        pending_jumps((rewind(1),), rewinds_in_history=2)


# The whole of it, as train does it, with a kill anywhere


@dataclass(frozen=True)
class Saved:
    """A checkpoint."""

    n: int
    segments: tuple[Segment, ...]
    rewinds: int


@dataclass
class Disk:
    """What outlives a kill."""

    checkpoints: dict[int, Saved] = field(default_factory=dict)
    rewinds: list[Rewind] = field(default_factory=list)
    has_changed: bool = False  # the mixture in the configuration
    rewinds_at_change: int = 0
    ledger: dict[int, tuple] = field(default_factory=dict)  # step → its samples


@dataclass(frozen=True)
class Story:
    """When the run diverges: rewinds so far → (the step at which it is noticed, steps to jump)."""

    steps: int
    every: int
    diverges: tuple[tuple[int, int], ...]
    changes_behind: int | None = (
        None  # step behind which the run is stopped, and its mixture changed
    )
    global_samples: int = G


class Killed(BaseException):
    pass


def attempt(disk, story, is_killed):
    """From the newest sound checkpoint to the end; ``is_killed()`` is asked at every moment."""

    def moment():
        if is_killed():
            raise Killed

    rewinds = tuple(disk.rewinds)
    good = {s: c for s, c in disk.checkpoints.items() if not is_undone(s, c.rewinds, rewinds)}
    step = max(good, default=0)
    fresh = append_segment((), n=0, seed=1, quotas=QUOTAS, fingerprints={})
    saved = good.get(step, Saved(0, fresh, 0))
    segments = saved.segments
    for jump in pending_jumps(rewinds, rewinds_in_history=saved.rewinds):
        assert jump.start >= saved.n
        segments = jump_window(jump.segments, start=jump.start, samples=jump.samples)
    quotas = OTHER if disk.has_changed else QUOTAS
    segments = append_segment(segments, n=saved.n, seed=1, quotas=quotas, fingerprints={})
    n, mixture = saved.n, Mixture(segments, seed=1)
    for undone in [s for s in disk.ledger if s > step]:
        del disk.ledger[undone]
    while step < story.steps:
        if step == story.changes_behind and not disk.has_changed:
            saved = Saved(n, segments, len(rewinds))
            disk.checkpoints[step] = saved
            moment()
            disk.has_changed, disk.rewinds_at_change = True, len(rewinds)
            moment()
            return attempt(disk, story, is_killed)
        step += 1
        sources, indices = mixture.locate(n, story.global_samples)
        moment()
        disk.ledger[step] = tuple(zip(sources.tolist(), indices.tolist(), strict=True))
        n += story.global_samples
        moment()
        if len(rewinds) < len(story.diverges) and story.diverges[len(rewinds)][0] == step:
            jumped = story.diverges[len(rewinds)][1]
            noticed = divergence(
                at_step=step,
                not_after_step=max(0, step - jumped),
                jump_from_n=max(0, n - jumped * story.global_samples),
                jump_samples=min(n, jumped * story.global_samples),
            )
            committed = {s: c.n for s, c in disk.checkpoints.items() if s in good}
            planned = plan_rewind(
                noticed, committed, number=len(rewinds) + 1, time=0, segments=segments
            )
            if planned is None:
                return
            moment()
            disk.rewinds.append(planned)
            moment()
            return attempt(disk, story, is_killed)
        if step % story.every == 0:
            moment()
            saved = Saved(n, segments, len(rewinds))
            disk.checkpoints[step] = good[step] = saved
            moment()


def run(story, kills=()):
    """The disk of a run that is killed after so many moments each time, in turn."""
    disk = Disk()
    for limit in [*kills, math.inf]:
        left = [limit]

        def is_killed(left=left):
            left[0] -= 1
            return left[0] < 0

        try:
            attempt(disk, story, is_killed)
            return disk
        except Killed:
            continue
    raise AssertionError


STORIES = st.builds(
    Story,
    steps=st.integers(20, 40),
    every=st.integers(1, 6),
    diverges=st.lists(
        st.tuples(st.integers(6, 40), st.integers(1, 12)), min_size=1, max_size=4
    ).map(tuple),
)


CHANGING = st.builds(
    lambda story, step: replace(story, changes_behind=step), STORIES, st.integers(1, 30)
)


@settings(max_examples=300, deadline=None)
@given(story=CHANGING, kills=st.lists(st.integers(0, 90), max_size=8))
def test_kills_and_resumes_give_the_same_samples_as_the_run_without(story, kills):
    whole, broken = run(story), run(story, kills)
    assert broken.ledger == whole.ledger
    assert broken.rewinds == whole.rewinds


@settings(max_examples=150, deadline=None)
@given(story=STORIES, seed=st.integers(0, 10**6))
def test_an_older_checkpoint_gives_the_same_samples_too(story, seed):
    """As when the newest ones are damaged: the jumps that they had are added again."""
    whole = run(story)
    disk = Disk(rewinds=list(whole.rewinds), ledger=dict(whole.ledger))
    kept = random.Random(seed)
    disk.checkpoints = {s: c for s, c in whole.checkpoints.items() if kept.random() < 0.5}
    behind = replace(story, diverges=story.diverges[: len(whole.rewinds)])
    if any(not is_undone(s, c.rewinds, disk.rewinds) for s, c in disk.checkpoints.items()):
        expected = run(behind).ledger
        attempt(disk, behind, lambda: False)
        assert disk.ledger == expected


@settings(max_examples=150, deadline=None)
@given(story=STORIES)
def test_what_a_run_with_rewinds_uses_is_the_plain_order_without_the_windows(story):
    disk = run(story)
    plain_segments = append_segment((), n=0, seed=1, quotas=QUOTAS, fingerprints={})
    sources, indices = Mixture(plain_segments, seed=1).locate(0, 2000)
    expected = list(zip(sources.tolist(), indices.tolist(), strict=True))
    for row in disk.rewinds:
        del expected[row.jump_from_n : row.jump_from_n + row.jump_samples]
    used = [sample for step in sorted(disk.ledger) for sample in disk.ledger[step]]
    assert used == expected[: len(used)]
    assert max(Counter(used).values()) == 1


@settings(max_examples=300, deadline=None)
@given(story=CHANGING)
def test_what_was_jumped_is_not_used_although_the_mixture_has_changed(story):
    disk = run(story)
    used = [sample for step in sorted(disk.ledger) for sample in disk.ledger[step]]
    assert max(Counter(used).values()) == 1
    for row in disk.rewinds[disk.rewinds_at_change :]:
        mixture = Mixture(row.segments, seed=1)
        sources, indices = mixture.locate(row.jump_from_n, row.jump_samples)
        assert not set(used) & set(zip(sources.tolist(), indices.tolist(), strict=True))


def test_a_rewind_to_the_step_at_which_the_mixture_changed_jumps():
    story = Story(steps=30, every=6, diverges=((15, 2), (16, 2)), changes_behind=12)
    disk = run(story)
    assert [(row.to_step, row.jump_from_n) for row in disk.rewinds] == [(12, 52), (12, 56)]
    assert [segment.start for segment in disk.rewinds[0].segments] == [0, 48]
    last = disk.checkpoints[30]
    assert Mixture(last.segments, seed=1).jumped_at(last.n) == 16


def test_the_stories_have_rewinds_in_them():
    """Else the properties above would hold of nothing."""
    story = Story(steps=30, every=3, diverges=((12, 4), (14, 2), (14, 7), (29, 3)))
    disk = run(story)
    assert [(r.to_step, r.jump_from_n, r.jump_samples) for r in disk.rewinds] == [
        *((6, 32, 16), (12, 48, 8), (6, 28, 28), (24, 104, 12)),
    ]
    assert len(disk.ledger) == 30
