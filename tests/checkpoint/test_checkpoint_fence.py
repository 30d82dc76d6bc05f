"""What an older copy of a run finds when it comes late: test_train_lease.py has the real copies."""

import pytest

from lmscale.checkpoint.layout import MANIFEST, fragment_file, step_folder
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.tier import commit
from lmscale.errors import CheckpointError, LeaseLostError
from lmscale.files.atomic import write_json
from lmscale.ranks.attempt import Attempt
from lmscale.runs.lease import Lease

OLDER, NEWER = Attempt(job="7", restart=0), Attempt(job="7", restart=1)


@pytest.fixture
def root(tmp_path):
    """Checkpoints of steps 2 and 4, and a save of step 6 under way."""
    for step in (2, 4, 6):
        folder = step_folder(tmp_path, step)
        folder.mkdir()
        (folder / "rank-00000.7.0.safetensors").write_bytes(b"x")
        if step < 6:
            (folder / MANIFEST).write_text("{}")
    return tmp_path


@pytest.fixture
def leases(tmp_path):
    """The older copy's, which it has lost, and the newer one's."""
    pair = Lease(OLDER, tmp_path), Lease(NEWER, tmp_path)
    for lease in pair:
        lease.take(["n1"])
    return pair


def test_names_of_fragments_differ_between_the_attempts_of_a_job_and_are_plain_without_one():
    assert fragment_file(3, NEWER.name) == "rank-00003.7.1.safetensors"
    assert fragment_file(3, OLDER.name) == "rank-00003.7.0.safetensors"
    assert fragment_file(3, Attempt().name) == "rank-00003.safetensors"


def test_a_start_clears_away_a_save_under_way_and_its_manifest_cannot_be_written_then(root):
    place = LocalPlace(root)
    place.discard_uncommitted()
    assert place.list_steps() == [4, 2]
    assert sorted(path.name for path in root.iterdir()) == ["step-000000002", "step-000000004"]
    with pytest.raises(FileNotFoundError):
        write_json(step_folder(root, 6) / MANIFEST, {})


def test_a_manifest_that_came_just_before_the_clearing_counts(root, monkeypatch):
    committed = step_folder(root, 6) / MANIFEST
    committed.write_text("{}")
    place = LocalPlace(root)
    with monkeypatch.context() as patch:  # as seen before
        patch.setattr(place, "list_steps", lambda *, committed: [6])
        place.discard_uncommitted()
    assert committed.exists() and (committed.parent / "rank-00000.7.0.safetensors").exists()
    assert place.list_steps() == [6, 4, 2]


def test_what_a_start_that_was_killed_while_clearing_left_goes_with_the_next(root):
    (root / ".discarded-step-000000008").mkdir()
    LocalPlace(root).discard_uncommitted()
    assert not list(root.glob(".*"))
    LocalPlace(root / "none").discard_uncommitted()  # a run that has not saved yet


def test_a_checkpoint_that_such_a_start_had_set_aside_comes_back(root):
    place = LocalPlace(root)
    (root / "step-000000004").rename(root / ".discarded-step-000000004-0a1b2c3d")
    (root / "step-000000002").rename(root / ".discarded-step-000000002-0a1b2c3d")
    (root / "step-000000002").mkdir()  # begun again since, and torn as well
    place.discard_uncommitted()
    assert place.list_steps()[-2:] == [4, 2] and not list(root.glob(".*"))


def test_a_late_manifest_does_not_replace_the_newer_copys(root, leases, monkeypatch):
    older, newer = leases
    commit(LocalPlace(root), 6, b"newer", newer)
    with monkeypatch.context() as patch:  # the look before the write was before the take-over
        looks = iter((lambda: None, older.check))
        patch.setattr(older, "check", lambda: next(looks)())
        with pytest.raises(LeaseLostError):
            commit(LocalPlace(root), 6, b"older", older)
    assert (step_folder(root, 6) / MANIFEST).read_bytes() == b"newer"


def test_the_holder_is_told_of_a_manifest_that_came_late_into_its_folder(root, leases):
    path = step_folder(root, 6) / MANIFEST
    path.write_bytes(b"older")
    with pytest.raises(CheckpointError, match="was committed by somebody else meanwhile"):
        commit(LocalPlace(root), 6, b"newer", leases[1])
    assert path.read_bytes() == b"older"


def test_a_copy_that_knows_it_has_lost_the_run_writes_nothing(root, leases):
    with pytest.raises(LeaseLostError):
        commit(LocalPlace(root), 6, b"older", leases[0])
    assert not (step_folder(root, 6) / MANIFEST).exists()
