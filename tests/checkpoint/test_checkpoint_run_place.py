"""Whose a place is that is not in the run's folder, and what ``commits.jsonl`` tells of it."""

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from handmade_checkpoints import place_at, save
from tiny_run import log_commit, logged_steps

from lmscale.checkpoint import commit_log
from lmscale.checkpoint.commit_log import record_commit
from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.places import place as place_module
from lmscale.checkpoint.places import run_place
from lmscale.checkpoint.places.place import OWNER_FILE, LocalPlace
from lmscale.checkpoint.places.run_place import open_place, prepare_place
from lmscale.checkpoint.retention import Retention, remove
from lmscale.checkpoint.tier import SharedTier
from lmscale.errors import CheckpointError
from lmscale.files.run_files import COMMITS_FILE
from lmscale.runs.commits import append_removals, read_commits

pytestmark = [
    pytest.mark.slow,
    # botocore and aiobotocore leave sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_a_missing_bucket_is_told_at_the_start(s3, tmp_path, tiny_data):
    config = make_config(tiny_data, tmp_path / "run", folder="s3://nowhere/run")
    with pytest.raises(CheckpointError) as caught:
        prepare_place(config, open_place(config))
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


def make_config(data, run, **checkpoint):
    from tiny_run import tiny_config

    run.mkdir()
    overrides = {f"checkpoint.{key}": value for key, value in checkpoint.items()}
    return tiny_config(data, run, overrides)


@pytest.fixture(params=["s3", "elsewhere", "run"])
def config(request, s3, tmp_path, tiny_data):
    """Of a run whose checkpoints are in S3, in another folder, in its own."""
    folder = {
        "s3": f"s3://runs/{tmp_path.name}",
        "elsewhere": str(tmp_path / "elsewhere"),
        "run": "",
    }[request.param]
    return make_config(tiny_data, tmp_path / "run", folder=folder)


def save_and_log(config, *steps):
    """As the run's writer does it."""
    place = open_place(config)
    for step in steps:
        record_commit(config.folder, place, save(place, step))


def test_the_log_names_what_was_committed_and_not_what_was_removed(config):
    place = open_place(config)
    prepare_place(config, place)
    save_and_log(config, 2, 4, 6)
    remove(config.folder, place, [2])
    commits = read_commits(config.folder)
    assert [commit.step for commit in commits] == place.list_steps()[::-1] == [4, 6]
    for commit in commits:
        manifest = load_manifest(place, commit.step)
        assert commit.sha256 == manifest.hash and commit.n == 12 * commit.step
        assert commit.bytes == sum(entry.bytes for entry in manifest.files)
        is_own = place.location == str(config.folder / "checkpoints")
        folder = f"checkpoints/step-{commit.step:09d}" if is_own else place.name_of(commit.step)
        assert (commit.folder, commit.is_elsewhere) == (folder, not is_own)


def test_a_log_that_a_kill_has_left_wrong_is_mended_at_the_start(config):
    place = open_place(config)
    prepare_place(config, place)
    save_and_log(config, 2, 4, 6)
    whole = {commit.step: commit.key for commit in read_commits(config.folder)}
    append_removals(config.folder, [4])  # as if it had no row
    log_commit(config.folder, 6)  # of the save before
    log_commit(config.folder, 9)  # of nothing
    prepare_place(config, place)
    assert {commit.step: commit.key for commit in read_commits(config.folder)} == whole
    rows = (config.folder / COMMITS_FILE).read_text()
    prepare_place(config, place)
    assert (config.folder / COMMITS_FILE).read_text() == rows, "there is nothing left to mend"


def test_a_save_that_replaces_an_undone_one_leaves_no_row_of_it_though_it_is_killed(config):
    """A rewind went back to before step 2, and step 4 is not yet done anew."""
    place = open_place(config)
    prepare_place(config, place)
    save_and_log(config, 2, 4)
    before = read_commits(config.folder)[0]
    retention = Retention(place, config.checkpoint, config.folder)
    SharedTier(place, retention=retention).begin(2)
    assert logged_steps(config.folder) == [4]
    manifest = save(place, 2, reason="asked")  # committed, and killed before its row
    prepare_place(config, place)
    again = read_commits(config.folder)[0]
    assert (again.step, again.sha256) == (2, manifest.hash) != (2, before.sha256)


def test_a_log_that_was_lost_is_made_anew(config):
    place = open_place(config)
    prepare_place(config, place)
    save_and_log(config, 2, 4)
    (config.folder / COMMITS_FILE).unlink()
    prepare_place(config, place)
    assert logged_steps(config.folder) == [2, 4]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_a_row_that_cannot_be_written_undoes_no_commit_and_no_removal(
    config, monkeypatch, caplog, number
):
    place = open_place(config)
    prepare_place(config, place)

    def refusing(run_folder, *values):
        raise OSError(number, "so it says", str(run_folder))

    with monkeypatch.context() as patched:
        patched.setattr(commit_log, "append_commit", refusing)
        patched.setattr(commit_log, "append_removals", refusing)
        save_and_log(config, 2, 4)
        remove(config.folder, place, [2])
    assert "step-000000004 is committed, but has no row in commits.jsonl until" in caplog.text
    assert place.list_steps() == [4] and logged_steps(config.folder) == []
    prepare_place(config, place)
    assert logged_steps(config.folder) == [4]


def test_a_manifest_that_cannot_be_read_does_not_keep_a_run_from_looking_for_an_older_one(
    config, monkeypatch
):
    place = open_place(config)
    save(place, 2)
    save(place, 4)
    read = place.read_manifest

    def failing(step):
        if step == 4:
            raise OSError(errno.EIO, "a bad sector, says the test")
        return read(step)

    monkeypatch.setattr(place, "read_manifest", failing)
    prepare_place(config, place)
    assert logged_steps(config.folder) == [2]


@pytest.fixture
def elsewhere(tiny_data, tmp_path):
    """Of a run whose checkpoints are in another folder."""
    return make_config(tiny_data, tmp_path / "run", folder=str(tmp_path / "elsewhere"))


def test_a_run_that_has_checkpoints_in_its_folder_is_not_moved_silently(elsewhere):
    own = LocalPlace(elsewhere.folder / "checkpoints")
    save(own, 2)
    with pytest.raises(CheckpointError, match="step-000000002 is a checkpoint, but"):
        prepare_place(elsewhere, open_place(elsewhere))
    assert own.list_steps() == [2]


def test_a_place_that_is_suddenly_empty_is_no_new_run(elsewhere, tiny_data, tmp_path):
    """As where a file system is not mounted: the run may neither begin anew nor forget."""
    prepare_place(elsewhere, open_place(elsewhere))
    save_and_log(elsewhere, 2, 4)
    (tmp_path / "elsewhere").rename(tmp_path / "unmounted")
    for folder in (str(tmp_path / "elsewhere"), "", str(tmp_path / "another")):
        checkpoint = elsewhere.checkpoint.model_copy(update={"folder": folder})
        config = elsewhere.model_copy(update={"checkpoint": checkpoint})
        with pytest.raises(
            CheckpointError, match=r"has saved before \(up to step 4, to /.*-000000004"
        ):
            prepare_place(config, open_place(config))
    assert logged_steps(elsewhere.folder) == [2, 4]


def test_a_run_whose_own_checkpoints_were_removed_begins_anew(tiny_data, tmp_path):
    config = make_config(tiny_data, tmp_path / "run")
    save_and_log(config, 2)
    shutil.rmtree(config.folder / "checkpoints")
    prepare_place(config, open_place(config))
    assert logged_steps(config.folder) == []


def test_a_place_is_found_where_the_run_is_now(tiny_data, tmp_path):
    config = make_config(tiny_data, tmp_path / "run")
    assert open_place(config).location == str(tmp_path / "run" / "checkpoints")
    moved = open_place(config, Path("moved"))
    assert moved.location == str(Path("moved") / run_place.CHECKPOINTS)
