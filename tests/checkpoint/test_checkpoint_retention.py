"""Which checkpoints stay: the rule as arithmetic, and what is left of real folders."""

import errno
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.checkpoint.layout import step_folder
from lmscale.checkpoint.manifest import ASKED, REGULAR, Manifest
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.retention import (
    Candidate,
    Retention,
    Rule,
    find_best,
    look_at,
    plan_prune,
    plan_retention,
    plan_rule,
    read_figures,
    survey,
)
from lmscale.config.safety import CheckpointConfig
from lmscale.errors import RefusedError
from lmscale.files.atomic import to_json_bytes
from lmscale.runs.students import record_student

RETENTION = [
    # steps there, newest, keep_last, keep_every_steps, steps that stay
    ([], 0, 1, 0, []),
    ([10], 10, 1, 0, [10]),
    ([10, 20, 30], 30, 1, 0, [30]),
    ([10, 20, 30], 30, 2, 0, [20, 30]),
    ([10, 20, 30], 30, 9, 0, [10, 20, 30]),
    ([10, 20, 30, 40], 40, 1, 20, [20, 40]),
    ([10, 20, 30, 40], 40, 2, 30, [30, 40]),
    ([10, 20, 30, 40, 50], 50, 2, 20, [20, 40, 50]),
    # Resumed from step 20, because 30 was damaged: 30 must neither push 25 out nor come back.
    ([10, 20, 25, 30], 25, 1, 0, [25]),
    ([10, 20, 25, 30], 25, 2, 0, [20, 25]),
    ([10, 20, 25, 30], 25, 2, 10, [10, 20, 25]),
]


@pytest.mark.parametrize(("steps", "newest", "keep_last", "keep_every", "stay"), RETENTION)
def test_retention_keeps_the_newest_and_the_multiples(steps, newest, keep_last, keep_every, stay):
    rule = Rule(keep_last=keep_last, keep_every_steps=keep_every)
    gone = plan_retention(
        [Candidate(step=step, is_good=True) for step in steps], rule, newest=newest
    )
    assert sorted(set(steps) - set(gone)) == stay


@st.composite
def situations(draw):
    """Checkpoints, the rule, and the last step that the run has committed."""
    steps = draw(st.sets(st.integers(1, 60), min_size=1, max_size=15))
    candidates = [
        Candidate(step=step, is_good=draw(st.booleans()), is_asked=draw(st.booleans()))
        for step in draw(st.permutations(sorted(steps)))
    ]
    rule = Rule(
        keep_last=draw(st.integers(1, 5)),
        keep_every_steps=draw(st.integers(0, 20)),
        best_steps=frozenset(draw(st.sets(st.sampled_from(sorted(steps)), max_size=3))),
    )
    return candidates, rule, draw(st.sampled_from(sorted(steps)))


@settings(max_examples=300, deadline=None)
@given(situations())
def test_the_last_good_checkpoint_never_goes_and_everything_undone_does(situation):
    candidates, rule, newest = situation
    gone = set(plan_retention(candidates, rule, newest=newest))
    past = [c for c in candidates if c.step <= newest]
    good = sorted((c.step for c in past if c.is_good), reverse=True)
    assert gone.isdisjoint(good[: rule.keep_last])
    assert {c.step for c in candidates if c.step > newest} <= gone
    for c in past:
        every = rule.keep_every_steps
        is_for_good = c.is_asked or c.step in rule.best_steps or (every and c.step % every == 0)
        is_recent = not good or c.step >= good[: rule.keep_last][-1]
        assert (c.step in gone) == (not is_for_good and not is_recent)


@settings(max_examples=100, deadline=None)
@given(situations())
def test_to_plan_again_after_the_deletion_deletes_nothing_more(situation):
    candidates, rule, newest = situation
    gone = plan_retention(candidates, rule, newest=newest)
    left = [c for c in candidates if c.step not in gone]
    assert plan_retention(left, rule, newest=newest) == ()


def test_the_best_are_found_among_the_steps_that_have_both_a_checkpoint_and_a_figure():
    figures = {10: 3.0, 15: 0.1, 20: 2.0, 30: 2.5, 40: 2.0, 50: math.nan}
    steps = [10, 20, 30, 40, 50]
    assert find_best(figures, steps, count=1, mode="min") == {20}  # of equal ones the earlier
    assert find_best(figures, steps, count=2, mode="min") == {20, 40}
    assert find_best(figures, steps, count=2, mode="max") == {10, 30}
    assert find_best({}, steps, count=2, mode="max") == frozenset()


def test_a_checkpoint_that_another_run_learns_from_stays(tmp_path):
    record_student(tmp_path, step=20, student=tmp_path / "student")
    steps = [10, 20, 30, 40]
    rule = plan_rule(CheckpointConfig(keep_last=1), steps, tmp_path)
    candidates = [Candidate(step=step, is_good=True) for step in steps]
    assert plan_retention(candidates, rule, newest=40) == (30, 10)


def test_a_folder_that_takes_no_students_is_warned_of(tmp_path, caplog):
    record_student(tmp_path / "is gone", step=20, student=tmp_path)
    assert "cannot be told that its checkpoint of step 20 is a teacher" in caplog.text


def test_figures_are_read_from_the_runs_metrics_whatever_else_is_in_the_file(tmp_path):
    assert read_figures(tmp_path, "evaluation/a/loss") == {}
    rows = [
        {"step": 2, "evaluation/a/loss": 3.5},
        {"step": 4, "train/loss": 1.0},
        {"step": 6, "evaluation/a/loss": None},  # was not finite
        {"step": 8, "evaluation/a/loss": 2.5, "evaluation/b/loss": 9.0},
        {"step": 10, "text": "evaluation/a/loss"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    torn = '{"step": 12, "evaluation/a/loss": 1'
    (tmp_path / "metrics.jsonl").write_text(lines + torn)
    figures = read_figures(tmp_path, "evaluation/a/loss")
    assert math.isnan(figures.pop(6)) and figures == {2: 3.5, 8: 2.5}


def test_figures_of_an_average_and_of_trained_weights_are_not_compared(tmp_path):
    mark = {"evaluation/of_average": 1.0}
    rows = [{"step": 2, "evaluation/a/loss": 3.5}, {"step": 4, "evaluation/a/loss": 2.5, **mark}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_figures(tmp_path, "evaluation/a/loss") == {4: 2.5}
    assert read_figures(tmp_path, "evaluation/a/loss", of_average=False) == {2: 3.5}


def write(place, step, *, is_finite=True, reason=REGULAR):
    """A checkpoint without tensors."""
    place.begin(step)
    manifest = Manifest(
        step=step,
        parameters={},
        states={},
        optimizer={"kind": "adamw", "step": step},
        loss_scale=None,
        state={},
        identity={},
        written_by={},
        is_finite=is_finite,
        reason=reason,
        files=(),
    )
    (step_folder(place.root, step) / "rank-00000.safetensors").write_bytes(b"x")
    place.commit(step, to_json_bytes(manifest.to_json()))


def write_torn(place, step):
    place.begin(step)
    (step_folder(place.root, step) / "rank-00000.safetensors").write_bytes(b"x")


@pytest.fixture
def place(tmp_path):
    return LocalPlace(tmp_path / "checkpoints")


def test_what_retention_removes_is_gone_with_all_its_files(place, tmp_path):
    for step in (1, 2, 3, 4):
        write(place, step)
    write_torn(place, 5)  # a save under way
    config = CheckpointConfig(keep_last=1, keep_every_steps=2)
    assert Retention(place, config, tmp_path).delete_old(newest=4) == (3, 1)
    names = sorted(path.name for path in place.root.iterdir())
    assert names == ["step-000000002", "step-000000004", "step-000000005"]


def test_what_interrupted_saves_left_goes_with_the_next_commit(place, tmp_path):
    write(place, 10)
    write_torn(place, 15)
    write(place, 20)
    Retention(place, CheckpointConfig(keep_last=2), tmp_path).delete_old(newest=20)
    assert sorted(path.name for path in place.root.iterdir()) == [
        "step-000000010",
        "step-000000020",
    ]


def test_checkpoints_that_were_asked_for_and_the_best_ones_stay(place, tmp_path):
    for step in (2, 4, 6, 8, 10):
        write(place, step, reason=ASKED if step == 4 else REGULAR)
    rows = [{"step": step, "evaluation/a/loss": abs(step - 6)} for step in (2, 4, 6, 8, 10)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    config = CheckpointConfig.model_validate(
        {"keep_last": 1, "keep_best": {"metric": "evaluation/a/loss"}}
    )
    Retention(place, config, tmp_path).delete_old(newest=10)
    assert place.list_steps() == [10, 6, 4]


def test_a_checkpoint_that_is_not_finite_or_cannot_be_read_protects_no_other(place, tmp_path):
    for step in (2, 4, 6, 8):
        write(place, step, is_finite=step != 6)
    (step_folder(place.root, 4) / "manifest.json").write_text("{")
    assert not look_at(place, 4).is_good and not look_at(place, 6).is_good
    config = CheckpointConfig(keep_last=2)
    assert Retention(place, config, tmp_path).delete_old(newest=8) == ()  # 8 and 2 are good
    write(place, 10)
    assert Retention(place, config, tmp_path).delete_old(newest=10) == (6, 4, 2)


def test_a_full_disk_takes_all_but_the_last_good_one_and_those_kept_for_good(place, tmp_path):
    for step in (2, 4, 5, 6, 8, 10):
        write(place, step, is_finite=step != 10, reason=ASKED if step == 5 else REGULAR)
    write_torn(place, 7)
    write_torn(place, 12)  # what is being saved
    write(place, 14)  # of steps that were undone
    config = CheckpointConfig(keep_last=4, keep_every_steps=4)
    freed = Retention(place, config, tmp_path).free_space(saving=12)
    assert freed == (7, 14, 6, 2)
    assert place.list_steps() == [10, 8, 5, 4]  # 10 is newer than the last good one
    assert place.list_steps(committed=False) == [12]
    assert Retention(place, config, tmp_path).free_space(saving=12) == ()


def test_a_checkpoint_that_a_start_has_passed_over_is_not_the_last_good_one(place, tmp_path):
    for step in (2, 4, 6):
        write(place, step)
    config = CheckpointConfig(keep_last=2)
    assert Retention(place, config, tmp_path, passed_over={6}).free_space(saving=7) == (2,)
    assert place.list_steps() == [6, 4]
    write(place, 8)
    config = CheckpointConfig(keep_last=1)
    Retention(place, config, tmp_path, passed_over={6}).delete_old(newest=8)
    assert place.list_steps() == [8]


def test_what_a_rewind_would_need_stays(place, tmp_path):
    for step in (2, 4, 6, 8):
        write(place, step)
    config = CheckpointConfig(keep_last=1)
    spare = lambda steps, newest: {"a test": steps[-1:]}  # noqa: E731
    assert Retention(place, config, tmp_path, spare=spare).delete_old(newest=8) == (6, 4)


def test_what_is_kept_for_two_reasons_both_stays(place, tmp_path):
    for step in (2, 4, 6, 8):
        write(place, step)
    spare = lambda steps, newest: {"one": (2,), "other": (newest - 2,)}  # noqa: E731
    config = CheckpointConfig(keep_last=1)
    assert Retention(place, config, tmp_path, spare=spare).delete_old(newest=8) == (4,)


def test_what_is_kept_for_a_rewind_is_one_that_can_be_gone_back_to(place, tmp_path):
    for step in (2, 4, 6, 8):
        write(place, step)
    config = CheckpointConfig(keep_last=1)
    spare = lambda steps, newest: {"a test": (max(step for step in steps if step < 7),)}  # noqa: E731
    Retention(place, config, tmp_path, passed_over={6}, spare=spare).delete_old(newest=8)
    assert place.list_steps() == [8, 4]


def test_on_a_full_disk_what_a_rewind_would_need_goes_only_where_nothing_else_can(place, tmp_path):
    for step in (2, 4, 6, 8):
        write(place, step)
    config = CheckpointConfig(keep_last=9)
    spare = lambda steps, newest: {"a test": (2, 4)}  # noqa: E731
    assert Retention(place, config, tmp_path, spare=spare).free_space(saving=10) == (6,)
    place.begin(7)  # torn: it makes room as well
    assert Retention(place, config, tmp_path, spare=spare).free_space(saving=10) == (7,)
    assert Retention(place, config, tmp_path, spare=spare).free_space(saving=10) == (2,)
    assert Retention(place, config, tmp_path, spare=spare).free_space(saving=10) == (4,)
    assert Retention(place, config, tmp_path, spare=spare).free_space(saving=10) == ()
    assert place.list_steps() == [8]


def test_a_listing_says_of_what_is_kept_beside_the_rule_why_and_nobody_is_told_to_prune_it(place):
    for step in (2, 4, 6, 8, 10):
        write(place, step, is_finite=step != 10)

    def spare(steps, newest):
        assert (list(steps), newest) == ([8, 6, 4, 2], 8), "the good ones"
        return {"rewind": (2, 4), "audited": (4, 8)}

    rule = Rule(keep_last=1)
    listed = survey(place, rule, spare=spare)
    assert {one.step: one.kept_for for one in listed} == {
        10: (),
        8: ("last", "audited"),
        6: (),
        4: ("rewind", "audited"),
        2: ("rewind",),
    }
    assert [one.step for one in plan_prune(listed, rule)] == [6]
    assert [one.step for one in plan_prune(survey(place, rule), rule)] == [6, 4, 2]


class RefusingPlace(LocalPlace):
    """Another user's checkpoint of step 4, which may be whole."""

    def read_manifest(self, step):
        if step == 4:
            raise PermissionError(errno.EACCES, "refused, says the test")
        return super().read_manifest(step)


def test_a_manifest_that_may_not_be_read_is_not_taken_for_a_damaged_one(place):
    for step in (2, 4):
        write(place, step)
    refusing = RefusingPlace(place.root)
    with pytest.raises(RefusedError, match="It may be whole"):
        survey(refusing, Rule(keep_last=1))
    with pytest.raises(RefusedError, match="It may be whole"):
        look_at(refusing, 4)
