"""What a save that meets a full disk leaves, and what all ranks are told of it."""

import errno
import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
from handmade_checkpoints import manifest_of, parts_of_rank, save
from small_disk import run_on_small_disk

from lmscale.checkpoint import writer as writer_module
from lmscale.checkpoint.layout import MANIFEST, step_folder
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.snapshot import Copy
from lmscale.checkpoint.tier import SharedTier
from lmscale.checkpoint.writer import CheckpointWriter
from lmscale.errors import CheckpointError, LeaseLostError, NoSpaceError
from lmscale.ranks.attempt import Attempt
from lmscale.ranks.mailbox import open_mailbox
from lmscale.ranks.ranks import Ranks
from lmscale.runs.lease import NO_LEASE, Lease


class RefusingPlace(LocalPlace):
    """Takes some bytes of a file, or all but the last rename of a commit, then no more."""

    code = errno.ENOSPC
    takes_files = False

    def write_file(self, step, name, pieces):
        super().write_file(step, name, pieces)
        if not self.takes_files:
            raise OSError(self.code, os.strerror(self.code))

    def commit(self, step, manifest):
        super().commit(step, manifest)
        raise OSError(self.code, os.strerror(self.code))


@pytest.fixture
def place(tmp_path):
    return RefusingPlace(tmp_path / "checkpoints")


def save_in_vain(place, lease=NO_LEASE, make_room=None):
    """The error of a save of step 4 by a single rank."""
    ranks = Ranks()
    writer = CheckpointWriter(ranks, open_mailbox(ranks), lease=lease, retries=0)
    retention = Mock(free_space=make_room) if make_room else None
    copy = Copy(parts=parts_of_rank(4, 0, 1), ready=lambda: None)
    try:
        job = writer.start(
            step=4, tier=SharedTier(place, retention=retention), copy=copy, draft=manifest_of(4, [])
        )
        with pytest.raises(Exception) as caught:  # noqa: B017, PT011 - the tests look at it
            writer.wait(job)
    finally:
        assert writer.close()
    return caught.value


def test_a_save_that_a_full_disk_ends_leaves_nothing_that_fills_it_for_the_next_start(place):
    save(LocalPlace(place.root), 2)
    assert isinstance(save_in_vain(place), NoSpaceError)
    assert [path.name for path in place.root.iterdir()] == ["step-000000002"]


def test_what_another_copy_may_be_writing_is_not_cleared_from_a_full_disk(place, tmp_path):
    mine = Lease(Attempt(job="7", restart=0), tmp_path)
    mine.take(["n1"])

    def overtaken(*, saving):
        Lease(Attempt(job="7", restart=1), tmp_path).take(["n2"])
        return ()

    error = save_in_vain(place, lease=mine, make_room=overtaken)
    assert isinstance(error, LeaseLostError) and "attempt 7.1" in str(error)
    assert place.list_steps(committed=False) == [4]


def test_a_copy_whose_folder_the_newer_one_clears_in_the_commit_is_told_of_that_one(tmp_path):
    mine = Lease(Attempt(job="7", restart=0), tmp_path)
    mine.take(["n1"])

    class ClearedPlace(LocalPlace):
        def commit(self, step, manifest):
            Lease(Attempt(job="7", restart=1), tmp_path).take(["n2"])
            LocalPlace(self.root).discard_uncommitted()
            return super().commit(step, manifest)

    error = save_in_vain(ClearedPlace(tmp_path / "checkpoints"), lease=mine)
    assert isinstance(error, LeaseLostError) and "attempt 7.1" in str(error)


def test_a_manifest_that_stands_is_not_removed_though_the_disk_said_that_it_was_full(place):
    place.takes_files = True
    assert isinstance(save_in_vain(place), NoSpaceError)
    assert (step_folder(place.root, 4) / MANIFEST).exists()


def test_what_a_disk_that_fails_holds_of_a_save_is_left_to_the_next_start(place):
    place.code = errno.EACCES
    assert isinstance(save_in_vain(place), CheckpointError)
    assert place.list_steps(committed=False) == [4]


def test_a_full_disk_that_cannot_be_cleared_is_still_told_as_one(place, monkeypatch, caplog):
    def refuse(step):
        raise PermissionError(errno.EACCES, "refused, says the test")

    monkeypatch.setattr(place, "list_steps", lambda **how: [4])
    monkeypatch.setattr(place, "delete", refuse)
    monkeypatch.setattr(place, "begin", lambda step: step_folder(place.root, step).mkdir(parents=1))
    assert isinstance(save_in_vain(place), NoSpaceError)
    assert "what is there of step 4 stays" in caplog.text
    assert "refused, says the test" in caplog.text


def test_a_bug_where_room_is_made_ends_rank_0_as_the_others_with_the_full_disk(place, caplog):
    def make_room(*, saving):
        raise KeyError("a bug, says the test")

    error = save_in_vain(place, make_room=make_room)
    assert isinstance(error, NoSpaceError) and "No space is left" in str(error)
    assert "a bug, says the test" in caplog.text


def test_what_rank_0_has_told_to_all_is_not_gathered_from_all_once_more(place, monkeypatch):
    def gather(error):
        raise AssertionError("gathered")

    monkeypatch.setattr(writer_module, "fail_together", gather)
    assert isinstance(save_in_vain(place), NoSpaceError)


@pytest.fixture(scope="module")
def node_saves(tmp_path_factory):
    disk = tmp_path_factory.mktemp("node") / "disk"
    disk.mkdir()
    script = Path(__file__).parent / "full_node_saves.py"
    return json.loads(run_on_small_disk(disk, 500_000, script))


def test_a_save_that_a_nodes_memory_cannot_take_leaves_it_as_free_as_it_was(node_saves):
    fits, *refused = node_saves
    assert fits["ended"] == 2
    for row in refused:
        assert row["folders"] == ["step-000000002"]
        assert row["free"] == fits["free"] > 300_000


def test_a_full_node_is_told_with_its_own_setting_and_without_a_word_of_starting_again(node_saves):
    for row in node_saves[1:]:
        kind, no_space, advice = row["ended"]
        assert kind == "NoSpaceError"
        assert "No space is left in" in no_space and "checkpoint.local.folder" in no_space
        assert "the run trains on" in advice and "(checkpoint.local.folder)" in advice
        for words in ("start it again", "same command", "(checkpoint.folder)", "newest good one"):
            assert words not in no_space + advice
    assert "takes 1.0 MB" in node_saves[1]["ended"][2]
