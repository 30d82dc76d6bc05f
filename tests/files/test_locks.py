import errno
import os

import pytest

from lmscale.files import locks


@pytest.mark.parametrize("code", ["ENOSYS", "EOPNOTSUPP", "ENOLCK", "EINVAL", "ENOTTY"])
def test_a_file_system_without_locks_is_told_and_no_error(tmp_path, monkeypatch, code):
    def refuse(descriptor, kind):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locks.locked_file(tmp_path / "lock", 0.0) as is_locked:
        assert is_locked is False


def test_a_lock_that_another_holds_is_an_error_and_no_missing_lock(tmp_path):
    with locks.locked_file(tmp_path / "lock") as is_locked:
        assert is_locked
        with pytest.raises(BlockingIOError), locks.locked_file(tmp_path / "lock", 0.0):
            pass
