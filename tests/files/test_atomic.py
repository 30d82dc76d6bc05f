import errno
import os

import pytest

from lmscale.errors import CheckpointError, DataError, TransientError
from lmscale.files.atomic import write_bytes, writing


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "x"
    write_bytes(path, b"old")
    path.chmod(0o444)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space is left"),
        (errno.EACCES, "Name a place that this user may write to"),
        (errno.EROFS, "Name a place that this user may write to"),
        (errno.ENOTDIR, "A file stands where a folder must be"),
        (errno.EEXIST, "A file stands where a folder must be"),
        (errno.EISDIR, "or the other way round"),
        (errno.ENAMETOOLONG, "Name a place with a shorter path"),
        (errno.ENOENT, "run the same command again"),
        (errno.EDQUOT, "No space is left"),
    ],
)
def test_what_the_file_system_refuses_is_told_with_what_to_do(number, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        with writing("a checkpoint", "/place", CheckpointError):
            raise OSError(number, os.strerror(number), "/place/file")
    assert "/place" in str(caught.value) and "a checkpoint" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ESHUTDOWN, errno.ENOTCONN]
)
def test_a_file_system_that_fails_is_worth_another_start(number):
    with pytest.raises(TransientError, match="/place.*a checkpoint.*network file system failed"):
        with writing("a checkpoint", "/place", CheckpointError):
            raise OSError(number, os.strerror(number), "/place/file")


def test_another_failure_of_the_system_stays_a_bug():
    with pytest.raises(OSError, match="Bad file descriptor"):
        with writing("x", "."):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def test_real_paths_that_cannot_be_written_are_errors(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    places = ("file/x", "file/below/x", "none/x", "n" * 300 + "/x", "n" * 255, "full")
    for place in map(tmp_path.joinpath, places):
        with pytest.raises(DataError), writing("x", place.parent):
            write_bytes(place, b"")
