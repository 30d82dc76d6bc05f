"""What is taken from a cache is taken as it is: so nobody else may put anything into it."""

import hashlib
import os
import shutil
import stat

import pytest
from hostile import make_trap

from lmscale.config.data import StreamConfig
from lmscale.errors import ConfigError, DataError
from lmscale.files.cache import NodeCache, check_hash
from lmscale.files.private_folder import find_risk, is_own_file
from lmscale.stream.dataset import open_dataset

STRANGER = 54321
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


def open_cache(folder):
    return NodeCache(folder=folder, max_bytes=2**20, retries=0)


def verify_once(cache, shard, sha256):
    cache.once(shard, sha256, lambda: check_hash(shard, sha256))


def make(cache, key="k"):
    return cache.make(key, name="f", size=4, write=lambda path: path.write_bytes(b"ours"))


def test_a_cache_is_closed_to_all_others(tmp_path):
    cache = open_cache(tmp_path / "cache")
    make(cache).close()
    shard = tmp_path / "shard"
    shard.write_bytes(b"x")
    verify_once(cache, shard, hashlib.sha256(b"x").hexdigest())
    for folder in (cache.folder, cache.folder / "locks", cache.folder / "verified"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_all_may_write_to_is_refused(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises(ConfigError, match="every user may write to it. Set stream.cache.folder"):
        make(open_cache(folder))


def test_ones_own_group_may_share_it(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o2770)
    make(open_cache(folder)).close()


@as_root
@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_another_users_folder_is_refused(tmp_path, mode):
    folder = tmp_path / "cache"
    make(open_cache(folder)).close()
    os.chown(folder, STRANGER, STRANGER)
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=f"belongs to user {STRANGER}"):
        make(open_cache(folder))


@as_root
def test_a_folder_below_another_users_is_refused_where_anybody_could_have_made_that(tmp_path):
    tmp_path.chmod(0o1777)
    planted = tmp_path / "lmscale-shards-0"
    (planted / "checkpoints").mkdir(parents=True)
    os.chown(planted, STRANGER, STRANGER)
    assert "belongs to user" in str(find_risk(planted / "checkpoints"))
    tmp_path.chmod(0o755)  # somebody has given us a place in a folder of their own
    assert find_risk(planted / "checkpoints") is None


@as_root
def test_a_folder_reached_by_another_users_link_is_refused(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "ours")
    assert find_risk(tmp_path / "cache") is None, "one's own link is taken"
    os.chown(tmp_path / "cache", STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(ConfigError, match=f"belongs to user {STRANGER}"):
        make(open_cache(tmp_path / "cache"))


def test_a_folder_that_could_be_replaced_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)  # not sticky
    with pytest.raises(ConfigError, match="may put another one in its place"):
        make(open_cache(tmp_path / "open" / "cache"))


def test_a_folder_that_could_be_replaced_behind_ones_own_link_is_refused(tmp_path):
    (tmp_path / "open" / "real").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)  # not sticky
    (tmp_path / "cache").symlink_to(tmp_path / "open" / "real")
    with pytest.raises(ConfigError, match="may put another one in its place"):
        make(open_cache(tmp_path / "cache"))


@pytest.mark.parametrize("cache", ["first", "first/cache", "below/../first/not/made/yet"])
def test_a_link_that_could_be_replaced_behind_ones_own_link_is_a_risk(tmp_path, cache):
    for name in ("real/cache", "open", "below"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "open" / "second").symlink_to("../real")
    (tmp_path / "first").symlink_to(tmp_path / "open" / "second")
    assert find_risk(tmp_path / cache) is None
    (tmp_path / "open").chmod(0o777)
    assert "may put another one in its place" in str(find_risk(tmp_path / cache))


def test_a_folder_that_somebody_made_open_in_the_meantime_is_refused(tmp_path, monkeypatch):
    def make_late(folder):
        folder.mkdir()  # another user was first
        folder.chmod(0o1777)

    monkeypatch.setattr("lmscale.files.cache.make_private", make_late)
    with pytest.raises(ConfigError, match="every user may write to it"):
        make(open_cache(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_link_in_the_cache_is_replaced_and_not_followed(tmp_path):
    cache = open_cache(tmp_path / "cache")
    with make(cache) as file:
        path = file.path
    path.unlink()
    (tmp_path / "theirs").write_bytes(b"evil")
    path.symlink_to(tmp_path / "theirs")
    with make(cache) as file:
        assert file.path.read_bytes() == b"ours"
    assert (tmp_path / "theirs").read_bytes() == b"evil"


@as_root
def test_another_users_file_in_the_cache_is_not_used(tmp_path):
    cache = open_cache(tmp_path / "cache")
    with make(cache) as file:
        path = file.path
    path.write_bytes(b"evil")
    os.chown(path, STRANGER, STRANGER)
    with make(cache) as file:
        assert file.path.read_bytes() == b"ours"


def test_a_marker_vouches_for_nothing_where_others_could_have_made_it(tmp_path):
    cache = open_cache(tmp_path / "cache")
    shard = tmp_path / "shard"
    shard.write_bytes(b"good")
    right = hashlib.sha256(b"good").hexdigest()
    verify_once(cache, shard, right)
    (marker,) = (p for p in (cache.folder / "verified").iterdir() if p.name != ".pruned")
    before = shard.stat()
    shard.write_bytes(b"evil")
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    verify_once(cache, shard, right)  # the marker still vouches for it
    target = shutil.move(marker, tmp_path / "elsewhere")
    marker.symlink_to(target)
    assert not is_own_file(marker)
    with pytest.raises(DataError, match="its content has changed"):
        verify_once(cache, shard, right)
    marker.unlink()
    shutil.move(target, marker)
    verify_once(cache, shard, right)  # our own again, so it vouches
    cache.folder.chmod(0o1777)
    with pytest.raises(DataError, match="its content has changed"):
        verify_once(cache, shard, right)


def test_a_pickle_in_the_cache_is_never_loaded_and_replaced(tmp_path, tiny_data):
    mark = tmp_path / "it ran"
    settings = {"sequence_length": 32, "packing": "best_fit"}
    settings |= {"cache": {"folder": str(tmp_path / "cache"), "retries": 0}}
    dataset = open_dataset(tiny_data / "shards/a/train", StreamConfig.model_validate(settings))
    every = range(dataset.num_windows)
    expected = dataset.read(every).tokens.tolist()
    plans = list((tmp_path / "cache").glob("*pieces.npy"))
    for evil in (make_trap(mark), _object_array(make_trap(mark)), b""):
        dataset.close()
        for plan in plans:
            plan.write_bytes(evil)
        assert dataset.read(every).tokens.tolist() == expected
        assert evil not in [plan.read_bytes() for plan in plans]
    assert not mark.exists()


def _object_array(trap):
    return (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
        + b"\n"
        + trap
    )


def test_the_local_tier_of_checkpoints_is_closed_and_refused_where_others_came_first(tmp_path):
    from tiny_run import tiny_config

    from lmscale.checkpoint.places.local_tier import open_node_place

    local = {"checkpoint.local.folder": str(tmp_path / "shm")}
    config = tiny_config(tmp_path, tmp_path / "run", local)
    place = open_node_place(config)
    assert place is not None and stat.S_IMODE(place.root.stat().st_mode) == 0o700
    place.root.chmod(0o777)
    with pytest.raises(ConfigError, match=r"checkpoint.local.folder: .* every user may write"):
        open_node_place(config)
