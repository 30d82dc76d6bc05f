"""Whose a place is that is not in the run's folder, and what its receipts there tell."""

import errno
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from handmade_checkpoints import place_at, save, step_taken

from lmscale.checkpoint.places import place as place_module
from lmscale.checkpoint.places import run_place
from lmscale.checkpoint.places.place import OWNER_FILE, LocalPlace
from lmscale.checkpoint.places.run_place import open_place
from lmscale.errors import CheckpointError

pytestmark = [
    pytest.mark.slow,
    # botocore and aiobotocore leave sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_a_missing_bucket_is_told_at_the_start(s3, tmp_path, tiny_data):
    from tiny_run import tiny_config

    config = tiny_config(tiny_data, tmp_path / "run", {"checkpoint.folder": "s3://nowhere/run"})
    with pytest.raises(CheckpointError) as caught:
        open_place(config).prepare()
    assert str(caught.value) == (
        f"s3://nowhere/run/{OWNER_FILE}: there is no such file, bucket or folder. Make the bucket, "
        "or correct checkpoint.folder."
    )


def test_a_place_of_another_run_is_refused(place, tmp_path):
    for one in (place, LocalPlace(tmp_path / "elsewhere")):
        one.claim("tiny")
        one.claim("tiny")
        with pytest.raises(CheckpointError, match="checkpoints of the run 'tiny', not of 'other'"):
            one.claim("other")


def claims_of(make, names):
    """The names that were granted a place which all of them claim at once."""
    ready = Barrier(len(names))

    def claim(name):
        place = make()
        ready.wait()
        with suppress(CheckpointError):
            place.claim(name)
            return name

    with ThreadPoolExecutor(len(names)) as pool:
        return {name for name in pool.map(claim, names) if name}


def test_of_runs_that_claim_a_place_at_once_one_gets_it(place, tmp_path):
    names = [f"run-{number}" for number in range(8)]
    for round_ in range(5):
        for make in (
            partial(LocalPlace, tmp_path / f"round-{round_}"),
            partial(place_at, f"{place.location}/round-{round_}", tmp_path),
        ):
            granted = claims_of(make, names)
            assert len(granted) == 1
            make().claim(granted.pop())


def test_a_full_disk_does_not_keep_a_run_from_its_own_place(tmp_path, monkeypatch):
    place = LocalPlace(tmp_path)
    place.claim("tiny")

    number = errno.ENOSPC

    def refusing(path, content):
        raise OSError(number, "so it says", str(path))

    monkeypatch.setattr(place_module, "write_bytes", refusing)
    place.claim("tiny")
    number = errno.EROFS
    with pytest.raises(CheckpointError, match="Name a place that this user may write to"):
        place.claim("tiny")


@pytest.fixture(params=["s3", "folder"])
def elsewhere(request, s3, tmp_path, tiny_data):
    """A run's place that is not in its folder, and the folder."""
    from tiny_run import tiny_config

    folder = f"s3://runs/{tmp_path.name}" if request.param == "s3" else str(tmp_path / "elsewhere")
    config = tiny_config(tiny_data, tmp_path / "run", {"checkpoint.folder": folder})
    return open_place(config), config.folder / "checkpoints"


def receipts_in(folder):
    return sorted(int(path.parent.name[5:]) for path in folder.glob("step-*/manifest.json"))


def test_checkpoints_elsewhere_leave_receipts_in_the_runs_folder(elsewhere):
    place, receipts = elsewhere
    place.prepare()
    for step in (2, 4, 6):
        save(place, step)
        copy = receipts / f"step-{step:09d}" / "manifest.json"
        assert copy.read_text() == place.read_manifest(step)
    place.delete(2)
    assert receipts_in(receipts) == place.list_steps()[::-1] == [4, 6]
    place.begin(6)
    assert receipts_in(receipts) == place.list_steps() == [4]
    assert step_taken(place) == 4


def test_receipts_that_a_kill_has_left_wrong_are_mended_at_the_start(elsewhere):
    place, receipts = elsewhere
    place.prepare()
    for step in (2, 4, 6):
        save(place, step)
    whole = {path: path.read_bytes() for path in receipts.rglob("manifest.json")}
    newest = receipts / "step-000000006" / "manifest.json"
    newest.write_text("of the save before")
    (receipts / "step-000000004" / "manifest.json").unlink()
    (receipts / "step-000000009").mkdir()
    (receipts / "step-000000009" / "manifest.json").write_text("of nothing")
    place.prepare()
    assert {path: path.read_bytes() for path in receipts.rglob("manifest.json")} == whole
    assert not (receipts / "step-000000009").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_a_receipt_that_cannot_be_written_undoes_no_commit(elsewhere, monkeypatch, caplog, number):
    place, receipts = elsewhere
    place.prepare()

    def refusing(path, content):
        raise OSError(number, "so it says", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(run_place, "write_bytes", refusing)
        save(place, 2)
    assert "step-000000002 is committed, but has no receipt until the next start" in caplog.text
    assert place.list_steps() == [2] and receipts_in(receipts) == []
    place.prepare()
    assert receipts_in(receipts) == [2]


def test_a_manifest_that_cannot_be_read_does_not_keep_a_run_from_looking_for_an_older_one(
    elsewhere, monkeypatch
):
    place, receipts = elsewhere
    place.prepare()
    save(place, 2)

    def failing(step):
        raise OSError(errno.EIO, "a bad sector, says the test")

    monkeypatch.setattr(place._place, "read_manifest", failing)
    place.prepare()
    assert receipts_in(receipts) == [2]


def test_a_run_that_has_checkpoints_in_its_folder_is_not_moved_silently(elsewhere):
    place, receipts = elsewhere
    save(LocalPlace(receipts), 2)
    with pytest.raises(CheckpointError, match="step-000000002 is a checkpoint, but"):
        place.prepare()
    assert LocalPlace(receipts).list_steps() == [2]


def test_a_place_that_is_suddenly_empty_is_no_new_run(elsewhere):
    """As where a file system is not mounted: the run may neither begin anew nor forget."""
    place, receipts = elsewhere
    place.prepare()
    save(place, 2)
    save(place, 4)
    for step in (4, 2):  # past the receipts
        place._place.delete(step)
    with pytest.raises(CheckpointError, match=r"saved there before \(up to step 4"):
        place.prepare()
    assert receipts_in(receipts) == [2, 4]


def test_a_place_is_found_where_the_run_is_now(tiny_data, tmp_path):
    from tiny_run import tiny_config

    config = tiny_config(tiny_data, tmp_path / "run")
    assert open_place(config).location == str(tmp_path / "run" / "checkpoints")
    moved = open_place(config, Path("moved"))
    assert moved.location == str(Path("moved") / run_place.CHECKPOINTS)
