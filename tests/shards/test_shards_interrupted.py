"""A killed build goes on where it was, and a full disk loses nothing."""

import itertools
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from kill_points import open_killer
from shard_cases import contents, small_base, with_shards

from lmscale.config import dump_config
from lmscale.errors import DataError
from lmscale.files.reading import seal, unseal
from lmscale.shards.build import build_shards
from lmscale.shards.verify import verify_dataset

KILLED = """
import os, signal, sys
import lmscale.shards.build, lmscale.shards.writer
from lmscale.config import parse_config
from lmscale.shards.build import build_shards
calls = 0
module = lmscale.shards.{module}
original = module.{function}
def killed(*arguments, **settings):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **settings)
module.{function} = killed
build_shards(parse_config(sys.stdin.read()))
"""


def kill(config, *, module, function, call):
    """Build in a process that is killed at the given call of a function."""
    program = KILLED.format(module=module, function=function, call=call)
    result = subprocess.run(
        [sys.executable, "-c", program], input=dump_config(config), text=True, capture_output=True
    )
    assert result.returncode == -9, result.stderr


def test_a_killed_build_goes_on_and_never_rebuilds_a_finished_shard(base, dataset, tmp_path):
    config = with_shards(base, tmp_path / "killed")
    finished: dict[str, os.stat_result] = {}
    for call in (3, 2, 2):  # inside a shard: its header is written, its end is not
        kill(config, module="writer", function="to_npy", call=call * 7)
        assert not (tmp_path / "killed/topics/train").exists()
        shards = (tmp_path / "killed/topics").glob(".train.building/*/parts/part-*.tar")
        now = {path.name: path.stat() for path in shards}
        assert len(now) > len(finished)
        for name, status in finished.items():
            assert (now[name].st_ino, now[name].st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
        finished = now
    build_shards(config)
    inodes = {path.stat().st_ino for path in (tmp_path / "killed/topics/train").glob("*.tar")}
    assert {status.st_ino for status in finished.values()} <= inodes
    assert contents(tmp_path / "killed/topics/train") == contents(dataset)


def test_a_record_that_names_another_file_than_its_shard_is_not_believed(base, tmp_path):
    config = with_shards(base, tmp_path / "killed")
    kill(config, module="writer", function="to_npy", call=21)
    record = next((tmp_path / "killed/topics").glob(".train.building/*/parts/part-*.json"))
    tree = unseal(record.read_bytes())
    shard = record.with_suffix(".tar")
    shutil.copy(shard, tmp_path / "mine.tar")
    tree["entry"]["name"] = "../../../../../mine.tar"
    record.write_bytes(seal(tree))
    build_shards(config)
    assert (tmp_path / "mine.tar").exists()
    assert verify_dataset(tmp_path / "killed/topics/train") == []


WORK = """
from lmscale.config import parse_config
from lmscale.shards.build import build_shards
config = parse_config({config!r})
def work():
    build_shards(config)
"""


@pytest.mark.slow
def test_a_kill_before_any_change_of_the_disk_is_mended_by_the_next_build(tmp_path):
    base = small_base(tmp_path, num_texts=30)
    config = with_shards(base, tmp_path / "killed")
    build_shards(with_shards(base, tmp_path / "whole"))
    expected = contents(tmp_path / "whole/topics/train")
    with open_killer(WORK.format(config=dump_config(config))) as kill_at:
        for change in itertools.count(1):
            was_killed = kill_at(change)
            build_shards(config)
            assert contents(tmp_path / "killed/topics/train") == expected, change
            left = sorted(path.name for path in (tmp_path / "killed/topics").iterdir())
            assert [name for name in left if not name.endswith(".lock")] == ["heldout", "train"]
            if not was_killed:
                break
            shutil.rmtree(tmp_path / "killed")
    assert change > 40


def test_an_unfinished_build_of_something_else_is_not_used(base, tmp_path):
    config = with_shards(base, tmp_path / "killed")
    kill(config, module="build", function="write_bytes", call=2)
    other = with_shards(config, tmp_path / "killed", block_tokens=2048)
    (train, _) = build_shards(other).built.values()
    assert train.manifest.block_tokens == 2048
    assert verify_dataset(train.folder) == []
    assert not list((tmp_path / "killed/topics").glob(".*.building"))


def test_a_killed_pool_worker_is_a_clear_error(base, tmp_path, monkeypatch):
    monkeypatch.setattr("lmscale.tasks.building._do", kill_this_process)
    with pytest.raises(DataError, match="worker processes ended without a word.*work is kept"):
        build_shards(with_shards(base, tmp_path / "shards"), processes=2)


def kill_this_process(task):
    os.kill(os.getpid(), 9)


@contextmanager
def file_size_limit(size):
    """Writing past ``size`` bytes fails with EFBIG, as a full disk does; Python ignores SIGXFSZ."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_is_an_error_and_the_build_goes_on_later(base, dataset, tmp_path):
    config = with_shards(base, tmp_path / "full")
    with file_size_limit(30_000), pytest.raises(DataError, match="No space is left.*shards"):
        build_shards(config)
    assert not list((tmp_path / "full").rglob("*.tar"))
    assert not list((tmp_path / "full").rglob("*.tmp"))
    build_shards(config)
    assert contents(tmp_path / "full/topics/train") == contents(dataset)


def test_a_full_disk_in_a_worker_process_is_the_same_error(base, dataset, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        config = with_shards(base, disk / "shards")
        with pytest.raises(DataError, match="No space is left"):
            build_shards(config, processes=2)
        # A shard counts as finished once its record is there, which needs some space too.
        records = [record.with_suffix(".tar") for record in disk.rglob("part-*.json")]
        finished = {shard.name: shard.stat().st_ino for shard in records}
        assert finished
        assert subprocess.run(["mount", "-o", "remount,size=9m", str(disk)]).returncode == 0
        build_shards(config, processes=2)
        inodes = {path.stat().st_ino for path in disk.rglob("topics-*.tar")}
        assert set(finished.values()) <= inodes
        assert contents(disk / "shards/topics/train") == contents(dataset)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_corpus_that_changed_under_the_build_is_named(base, tmp_path):
    config = with_shards(base, tmp_path / "shards")
    source = Path(config.corpus.folder) / "topics" / "train"
    path = source / "documents-00000.jsonl"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1])
        with pytest.raises(DataError, match=r"documents-00000.jsonl: has .* the corpus manifest"):
            build_shards(config)
        path.write_bytes(whole[:-4] + b"XXX\n")
        with pytest.raises(DataError, match=r"documents-00000.jsonl: its content has changed"):
            build_shards(config)
    finally:
        path.write_bytes(whole)
