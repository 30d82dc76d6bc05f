import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from lmscale.errors import ConfigError, DataError
from lmscale.files.cache import (
    PRUNE_SECONDS,
    NodeCache,
    _remove_unless_held,
    check_hash,
    logger,
)


def build_cache(folder, max_bytes=100):
    return NodeCache(folder=folder, max_bytes=max_bytes, retries=0)


def make(cache, key, size=40, made=None):
    def write(path):
        path.write_bytes(b"x" * size)
        if made is not None:
            made.append(key)

    return cache.make(key, name="f.bin", size=size, write=write)


def files(cache):
    return sorted(path for path in cache.folder.iterdir() if path.is_file())


def test_a_file_is_made_once(tmp_path):
    cache, made = build_cache(tmp_path), []
    for _ in range(3):
        with make(cache, "a", made=made) as file:
            assert file.path.read_bytes() == b"x" * 40
    assert made == ["a"]


def test_the_file_unused_for_longest_makes_room(tmp_path):
    cache, made = build_cache(tmp_path), []
    for key in ("a", "b"):
        with make(cache, key, made=made) as file:
            os.utime(file.path, (len(made), len(made)))
    make(cache, "a", made=made).close()  # used again: now b is the older one
    make(cache, "c", made=made).close()
    make(cache, "a", made=made).close()
    assert made == ["a", "b", "c"]
    assert sum(path.stat().st_size for path in files(cache)) <= 100


def test_a_file_in_use_is_never_evicted(tmp_path):
    cache = build_cache(tmp_path)
    held = [make(cache, "a"), make(cache, "b")]
    with pytest.raises(ConfigError, match="max_bytes = 100 is too small: 40 more bytes are needed"):
        make(cache, "c")
    assert len(files(cache)) == 2
    held[0].close()
    make(cache, "c").close()
    assert held[1].path.exists() and not held[0].path.exists()


def test_a_file_in_use_by_another_process_is_never_evicted(tmp_path):
    cache = build_cache(tmp_path)
    program = f"""
import sys
from pathlib import Path
from lmscale.files.cache import NodeCache
cache = NodeCache(folder=Path({str(tmp_path)!r}), max_bytes=100, retries=0)
held = cache.make("a", name="f.bin", size=80, write=lambda path: path.write_bytes(b"x" * 80))
print("held", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match="80 bytes there are in use"):
        make(cache, "c")
    other.kill()  # the kernel drops its lock
    other.communicate()
    make(cache, "c").close()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    cache = build_cache(tmp_path)
    (tmp_path / ".part-90-0123-1").write_bytes(b"half")
    make(cache, "a").close()
    assert [path.name.endswith("f.bin") for path in files(cache)] == [True]


def test_a_file_being_written_counts_with_the_size_it_will_have(tmp_path):
    cache = build_cache(tmp_path)

    def write(path):
        with pytest.raises(ConfigError, match="60 bytes there are in use"):
            make(cache, "b", size=50)
        path.write_bytes(b"x" * 60)

    cache.make("a", name="f.bin", size=60, write=write).close()


def test_a_file_being_written_stays_when_its_writer_puts_a_new_one_in_its_place(tmp_path):
    cache = build_cache(tmp_path)

    def write(path):
        new = path.with_name("new")
        new.write_bytes(b"x" * 40)
        os.replace(new, path)
        make(cache, "b", size=50).close()  # makes room while nobody holds the new one
        path.write_bytes(path.read_bytes())

    with cache.make("a", name="f.bin", size=40, write=write) as file:
        assert file.path.read_bytes() == b"x" * 40


def test_locks_are_removed_by_whoever_held_them(tmp_path):
    cache = build_cache(tmp_path)
    for key in "abcd":
        make(cache, key).close()
    assert list((tmp_path / "locks").iterdir()) == []


def test_processes_that_wait_for_one_lock_hold_it_one_after_the_other(tmp_path):
    program = f"""
from pathlib import Path
from lmscale.files.cache import _locked
for _ in range(300):
    with _locked(Path({str(tmp_path / "lock")!r})):
        count = Path({str(tmp_path / "count")!r})
        count.write_text(str(int(count.read_text()) + 1))
"""
    (tmp_path / "count").write_text("0")
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "900"
    assert not (tmp_path / "lock").exists()


def write_and_verify(cache, shard, content=b"whole"):
    shard.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    cache.once(shard, digest, lambda: check_hash(shard, digest))
    return digest


def make_old(path):
    old = time.time() - PRUNE_SECONDS - 1
    os.utime(path, (old, old))


def test_markers_and_locks_that_count_no_more_are_pruned_once_a_day(tmp_path):
    cache = build_cache(tmp_path / "cache")
    for name in ("a", "b"):
        write_and_verify(cache, tmp_path / name)
    verified = cache.folder / "verified"
    old, new = (path for path in verified.iterdir() if path.name != ".pruned")
    make_old(old)
    make_old(verified / ".pruned")
    (cache.folder / "locks" / "left by a killed process").touch()
    make(cache, "a").close()
    assert sorted(verified.iterdir()) == [verified / ".pruned", new]
    assert list((cache.folder / "locks").iterdir()) == []


def test_no_marker_vouches_for_longer_than_a_day_or_for_an_audit(tmp_path):
    """A disk that forgets changes no time of a file."""
    cache, shard = build_cache(tmp_path / "cache"), tmp_path / "shard"
    digest = write_and_verify(cache, shard)
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    shard.write_bytes(b"whale")
    os.utime(shard, ns=times)
    cache.once(shard, digest, lambda: check_hash(shard, digest))  # not looked at
    (marker,) = (p for p in (cache.folder / "verified").iterdir() if p.name != ".pruned")
    with pytest.raises(DataError, match="its content has changed"):
        audit = replace(cache, look="audit")
        audit.once(shard, digest, lambda: check_hash(shard, digest))
    make_old(marker)
    with pytest.raises(DataError, match="its content has changed"):
        cache.once(shard, digest, lambda: check_hash(shard, digest))


def test_a_cached_file_that_is_not_sound_is_made_again_and_the_reader_is_told(
    tmp_path, monkeypatch
):
    cache, made = build_cache(tmp_path), []

    said: list[str] = []
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))

    def write(path):
        path.write_bytes(b"good")
        made.append(path)

    def take():
        return cache.make(
            "a",
            name="f.bin",
            size=4,
            write=write,
            is_sound=lambda path: path.read_bytes() == b"good",
        )

    with take() as file:
        path = file.path
    for damage in (b"evil", b"", b"goo"):
        path.write_bytes(damage)
        with take() as file:
            assert file.path.read_bytes() == b"good"
    assert len(made) == 4
    assert said == [f"{path}: damaged; it is made again"] * 3


def test_a_failed_write_leaves_nothing(tmp_path):
    cache = build_cache(tmp_path)

    def write(path):
        path.write_bytes(b"half")
        raise DataError("the server is gone")

    with pytest.raises(DataError, match="the server is gone"):
        cache.make("a", name="f.bin", size=40, write=write)
    assert files(cache) == []
    make(cache, "a").close()


def test_a_full_disk_is_an_error_that_says_so(tmp_path):
    def write(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space is left in .* a cached file"):
        build_cache(tmp_path).make("a", name="f.bin", size=40, write=write)


@pytest.fixture
def take_locks_away(monkeypatch):
    """Calling it makes every file system one without locks."""

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    return lambda: monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_cache_without_locks_is_refused_and_nothing_in_it_is_removed(tmp_path, take_locks_away):
    cache, made = build_cache(tmp_path), []
    make(cache, "a", size=80).close()
    (tmp_path / ".part-90-0123-1").write_bytes(b"another rank downloads this")
    before = files(cache)
    take_locks_away()
    for key in ("a", "b"):  # there, and not there
        with pytest.raises(ConfigError, match="without locks.*Set stream.cache.folder") as caught:
            make(cache, key, made=made)
        assert str(tmp_path) in str(caught.value)
    cache.clear()
    assert [_remove_unless_held(path) for path in before] == [False, False]
    assert (files(cache), made) == (before, [])


def test_a_local_file_is_hashed_each_time_where_the_cache_has_no_locks(tmp_path, take_locks_away):
    take_locks_away()
    cache, shard = build_cache(tmp_path / "cache"), tmp_path / "shard"
    digest = write_and_verify(cache, shard)
    assert list((tmp_path / "cache" / "verified").iterdir()) == []
    shard.write_bytes(b"other")
    with pytest.raises(DataError, match="its content has changed"):
        cache.once(shard, digest, lambda: check_hash(shard, digest))
