"""Checkpoints in a real S3 server, and what happens when it or the way to it fails."""

import hashlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
import torch
from handmade_checkpoints import first, place_at, save, search, step_taken, weights_of, write_part
from s3_server import REFUSED, environment, open_proxy

from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.manifest import MASTER, FileEntry
from lmscale.checkpoint.places import remote_place
from lmscale.checkpoint.places.place import OWNER_FILE
from lmscale.checkpoint.write_file import Part, write_file
from lmscale.errors import CheckpointError, TransientError
from lmscale.files import remote

pytestmark = [
    pytest.mark.slow,
    # botocore and aiobotocore leave sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MIB = 2**20


def keys_of(client, place):
    prefix = place.location.removeprefix("s3://runs/")
    listed = client.list_objects_v2(Bucket="runs", Prefix=f"{prefix}/").get("Contents", ())
    return sorted(row["Key"].removeprefix(f"{prefix}/") for row in listed)


def uploads_of(client):
    return client.list_multipart_uploads(Bucket="runs").get("Uploads") or []


def cut(content, size=MIB):
    return [memoryview(content)[start : start + size] for start in range(0, len(content), size)]


def entry_of(name, content):
    digest = hashlib.sha256(content).hexdigest()
    return FileEntry(name=name, bytes=len(content), sha256=digest, fragments=())


def test_what_is_saved_is_found_verified_and_read_back(place, client, tmp_path):
    for step in (2, 4):
        save(place, step)
    assert place.list_steps() == [4, 2]
    assert keys_of(client, place)[:3] == [
        "step-000000002/manifest.json",
        "step-000000002/rank-00000.safetensors",
        "step-000000002/rank-00001.safetensors",
    ]
    assert step_taken(place) == 4
    assert torch.equal(load_weights(place)["w"], weights_of(4))
    assert torch.equal(load_weights(place, 2)["w"], weights_of(2))
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_file()] == []


def test_processes_of_a_node_fetch_a_file_once_and_the_last_one_removes_it(place, monkeypatch):
    entry = save(place, 2).files[0]
    fetched = []
    original = remote.open_filesystem
    monkeypatch.setattr(
        "lmscale.files.cache.open_filesystem", lambda url: fetched.append(url) or original(url)
    )
    with place.opened(2, entry) as first_path:
        with place.opened(2, entry) as second_path:
            assert first_path == second_path
        assert first_path.exists()
    assert not first_path.exists()
    assert len(fetched) == 1


def test_a_large_file_goes_out_in_parts(place, client, monkeypatch):
    monkeypatch.setattr(remote_place, "PART_BYTES", 5 * MIB)
    content = os.urandom(12 * MIB + 7)
    place.begin(2)
    place.write_file(2, "a", cut(content))
    place.write_file(2, "empty", [])
    key = f"{place.location.removeprefix('s3://runs/')}/step-000000002/a"
    assert client.head_object(Bucket="runs", Key=key, PartNumber=1)["PartsCount"] == 3
    assert place.describe_damage(2, entry_of("a", content)) is None
    assert place.describe_damage(2, entry_of("empty", b"")) is None
    with place.opened(2, entry_of("a", content)) as path:
        assert path.read_bytes() == content


def test_a_manifest_is_written_once_and_the_first_writer_wins(place):
    place.begin(2)
    write_part(place, 2, 0, 1)
    assert place.commit(2, b"one") == b"one"
    assert place.commit(2, b"two") == b"one"
    assert place.commit(2, b"one") == b"one"
    assert place.read_manifest(2) == "one"


class Unconditional:
    """A store that knows no conditions, or says only that one was not met."""

    def __init__(self, number):
        self.number, self.content = number, {}

    def pipe_file(self, path, content, mode="overwrite"):
        if mode == "create" and (self.number == 38 or path in self.content):
            raise OSError(self.number, "no such thing")
        self.content[path] = content

    def cat_file(self, path):
        if path not in self.content:
            raise FileNotFoundError(path)
        return self.content[path]


@pytest.mark.parametrize("number", [22, 38])
def test_a_store_without_conditions_still_keeps_the_first_manifest_that_it_shows(number):
    store = Unconditional(number)
    for content in (b"one", b"two"):
        remote_place._put_once(store, "m", content)
    assert store.content == {"m": b"one"}


def test_a_checkpoint_goes_manifest_first_and_leaves_nothing(place, client, monkeypatch):
    save(place, 2)
    save(place, 4)
    deleted = []
    place.delete(2)
    assert place.list_steps() == [4] and place.list_steps(committed=False) == []
    place.delete(2)  # nothing there
    monkeypatch.setattr(
        remote_place, "with_retries", lambda action, *, url, **_: deleted.append(url) or action()
    )
    place.delete(4)
    assert deleted == [f"{place.name_of(4)}/manifest.json", place.name_of(4)]
    assert keys_of(client, place) == []


def test_of_many_writers_of_a_manifest_one_wins_and_all_hear_which(place):
    place.begin(2)
    with ThreadPoolExecutor(8) as pool:
        stands = list(pool.map(lambda n: place.commit(2, b"%d" % n), range(8)))
    assert len(set(stands)) == 1
    assert stands[0].decode() == place.read_manifest(2)


def test_what_was_not_committed_is_cleared_away_and_nothing_else(place, client):
    save(place, 2)
    place.begin(4)
    write_part(place, 4, 0, 2)
    prefix = place.location.removeprefix("s3://runs/")
    for key in (f"{prefix}/step-000000004/rank-00001", "elsewhere/step-000000004/rank-00001"):
        client.create_multipart_upload(Bucket="runs", Key=key)
    assert place.list_steps(committed=False) == [4]
    place.discard_uncommitted()
    assert place.list_steps() == [2] and place.list_steps(committed=False) == []
    assert [row["Key"] for row in uploads_of(client)] == ["elsewhere/step-000000004/rank-00001"]
    client.abort_multipart_upload(
        Bucket="runs", Key=uploads_of(client)[0]["Key"], UploadId=uploads_of(client)[0]["UploadId"]
    )


def test_a_manifest_that_came_just_before_the_clearing_of_a_store_counts(place, monkeypatch):
    save(place, 2)
    with monkeypatch.context() as patch:  # as seen before
        patch.setattr(place, "list_steps", lambda *, committed: [2])
        place.discard_uncommitted()
    assert place.list_steps() == [2] and step_taken(place) == 2


def test_whoever_may_not_list_uploads_can_save_and_is_told_what_is_missing(place, s3, caplog):
    save(place, 2)
    with open_proxy(s3) as proxy:
        proxy.methods, proxy.answers = (b"GET",), [(403, REFUSED)]
        place.discard_uncommitted()
        assert proxy.answers == []
    assert "allow s3:ListBucketMultipartUploads and s3:AbortMultipartUpload" in caplog.text
    assert place.list_steps() == [2]


def test_all_pages_of_a_list_of_uploads_are_read(place, client, monkeypatch):
    import s3fs

    prefix = place.location.removeprefix("s3://runs/")
    for rank in range(5):
        client.create_multipart_upload(Bucket="runs", Key=f"{prefix}/step-000000004/{rank}")
    original = s3fs.S3FileSystem.call_s3

    def in_small_pages(self, method, *rest, **named):
        more = {"MaxUploads": 2} if method == "list_multipart_uploads" else {}
        return original(self, method, *rest, **named, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", in_small_pages)
    place.discard_uncommitted()
    assert uploads_of(client) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content[:-1], "has .* bytes instead of"),
        (lambda content: bytes([content[0] ^ 1]) + content[1:], "does not have the hash"),
        (None, "is missing"),
    ],
)
def test_a_damaged_object_is_named_and_the_checkpoint_before_is_taken(place, client, change, why):
    save(place, 2)
    save(place, 4)
    name = "step-000000004/rank-00001.safetensors"
    key = f"{place.location.removeprefix('s3://runs/')}/{name}"
    content = client.get_object(Bucket="runs", Key=key)["Body"].read()
    if change is None:
        client.delete_object(Bucket="runs", Key=key)
    else:
        client.put_object(Bucket="runs", Key=key, Body=change(content))
    looking = search(place)
    assert next(looking).manifest.step == 2
    (passed,) = looking.passed_over
    assert passed.step == 4 and passed.name == place.name_of(4)
    with pytest.raises(CheckpointError, match=f"{name} {why}"):
        raise CheckpointError(passed.why)
    with pytest.raises(CheckpointError, match=name):
        load_weights(place, 4)


def test_what_others_did_to_a_store_is_seen_at_once(place, client):
    entry = save(place, 2).files[0]
    assert place.list_steps() == [2] and place.describe_damage(2, entry) is None
    prefix = place.location.removeprefix("s3://runs/")
    client.put_object(Bucket="runs", Key=f"{prefix}/step-000000004/manifest.json", Body=b"")
    assert place.list_steps() == [4, 2]
    client.put_object(Bucket="runs", Key=f"{prefix}/step-000000002/{entry.name}", Body=b"short")
    assert "has 5 bytes instead of" in place.describe_damage(2, entry)
    client.delete_object(Bucket="runs", Key=f"{prefix}/step-000000002/manifest.json")
    assert place.list_steps() == [4]


KILLED = """
import sys, time
from pathlib import Path
from lmscale.checkpoint.places import remote_place
from lmscale.files.cache import NodeCache

remote_place.PART_BYTES = 5 * 2**20
cache = NodeCache(folder=Path("unused"), max_bytes=1, retries=0)
place = remote_place.RemotePlace(sys.argv[1], retries=0, cache=cache)

def pieces():
    for _ in range(11):
        yield memoryview(bytes(2**20))
    print("half", flush=True)
    time.sleep(600)

place.begin(4)
place.write_file(4, "rank-00000.safetensors", pieces())
"""


def test_a_process_killed_inside_an_upload_leaves_nothing(place, client):
    save(place, 2)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, place.location], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert len(uploads_of(client)) == 1
    assert place.list_steps() == [2] and place.list_steps(committed=False) == []
    assert step_taken(place) == 2
    place.discard_uncommitted()
    assert uploads_of(client) == []
    save(place, 4)
    assert step_taken(place) == 4


def test_an_error_inside_an_upload_passes_and_leaves_nothing(place, client, monkeypatch):
    monkeypatch.setattr(remote_place, "PART_BYTES", 5 * MIB)

    class OwnError(Exception):
        pass

    def pieces():
        yield from cut(bytes(6 * MIB))
        raise OwnError("of whoever makes the pieces")

    with pytest.raises(OwnError, match="of whoever"):
        place.write_file(4, "a", pieces())
    assert uploads_of(client) == [] and keys_of(client, place) == []


@pytest.mark.parametrize("size", [MIB, 12 * MIB])
def test_a_file_whose_connections_are_dropped_is_written_again(place, s3, size, monkeypatch):
    monkeypatch.setattr(remote_place, "PART_BYTES", 5 * MIB)
    monkeypatch.setattr("lmscale.files.remote.FIRST_DELAY_SECONDS", 0.001)
    tensor = torch.randint(256, (size,), dtype=torch.uint8)
    parts = [Part(parameter="w", kind=MASTER, offset=0, tensor=tensor)]
    with open_proxy(s3) as proxy:
        proxy.cuts, proxy.cut_after = 3, MIB // 2
        entry = write_file(place, 4, "a", parts, retries=4)
        assert proxy.spoiled >= 2  # a short request may lie before what is cut
        assert place.describe_damage(4, entry) is None
        proxy.cuts = 1000
        with pytest.raises(TransientError, match=f"{place.name_of(4)}/b: could not be written"):
            write_file(place, 4, "b", parts, retries=1)
    assert place.list_steps() == []


def test_a_server_that_says_later_is_asked_again(place, s3):
    with open_proxy(s3) as proxy:
        place.begin(4)
        proxy.answers = [(503, b"")] * 2
        assert place.commit(4, b"{}") == b"{}"
        assert proxy.spoiled == 2
        proxy.answers = [(503, b"")] * 3
        with pytest.raises(TransientError, match=r"manifest.json: could not be written \(tried 3"):
            place.commit(5, b"{}")
        proxy.answers = []
    assert place.list_steps() == [4]


def test_a_commit_whose_answer_was_lost_is_a_commit(place, s3):
    with open_proxy(s3) as proxy:
        place.begin(4)
        proxy.methods, proxy.answers = (b"GET",), [(500, b""), (500, b"")]  # when it reads it back
        assert place.commit(4, b"{}") == b"{}"
        assert proxy.spoiled == 2


def test_a_store_that_loses_a_part_is_found_out_at_once_and_asked_again(place, monkeypatch):
    monkeypatch.setattr("lmscale.files.remote.FIRST_DELAY_SECONDS", 0.001)
    original = remote_place._upload
    monkeypatch.setattr(remote_place, "_upload", lambda *rest: original(*rest) + 1)
    with pytest.raises(TransientError, match="arrived of 8. If it stays so, the store loses"):
        place.write_file(4, "a", [memoryview(b"1234567")])
    lost = iter((1, 1, 0))
    monkeypatch.setattr(remote_place, "_upload", lambda *rest: original(*rest) + next(lost))
    tensor = torch.arange(8)
    parts = [Part(parameter="w", kind=MASTER, offset=0, tensor=tensor)]
    entry = write_file(place, 4, "b", parts, retries=4)
    assert place.describe_damage(4, entry) is None and next(lost, None) is None


def test_refused_access_is_told_at_once(place, s3):
    with open_proxy(s3) as proxy:
        proxy.answers = [(403, REFUSED)]
        with pytest.raises(CheckpointError, match=f"{OWNER_FILE}: access is refused"):
            place.claim("tiny")
        proxy.methods, proxy.answers = (b"GET", b"HEAD"), [(403, REFUSED)] * 9
        with pytest.raises(
            CheckpointError, match="access is refused .*Access Denied.* credentials"
        ):
            place.list_steps()
        assert len(proxy.answers) == 8


def test_no_credentials_are_told(s3, tmp_path):
    place = place_at("s3://runs/x", tmp_path)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with environment(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_EC2_METADATA_DISABLED="1"):
        with pytest.raises(CheckpointError, match="no credentials were found"):
            place.claim("tiny")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_server_that_is_away_stops_the_search_and_is_not_passed_over(place, s3):
    save(place, 2)
    save(place, 4)
    with open_proxy(s3) as proxy:
        proxy.methods, proxy.answers = (b"GET", b"HEAD"), [(503, b"")] * 100
        with pytest.raises(TransientError, match=f"{place.location}: could not be read"):
            first(place)
    assert step_taken(place) == 4


def test_memory_is_a_place_as_well(tmp_path):
    place = place_at(f"memory://{tmp_path.name}", tmp_path)
    place.claim("tiny")
    save(place, 2)
    save(place, 4)
    assert place.commit(4, b"other") != b"other"
    assert step_taken(place) == 4
    place.delete(4)
    place.discard_uncommitted()
    assert torch.equal(load_weights(place)["w"], weights_of(2))
