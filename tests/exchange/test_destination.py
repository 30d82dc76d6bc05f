"""An export behind a URL: whole or none, made new where it is lmscale's, never over what is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from s3_server import environment, open_proxy, open_s3
from tiny_run import is_gone

from lmscale.errors import ConfigError, DataError, TransientError
from lmscale.exchange.destination import BEGUN, PROBE, Destination, RemoteExport, open_remote
from lmscale.exchange.exported import MARK, MARK_OF_FILE, is_own_file, no_bar
from lmscale.exchange.old_exports import remove_old_exports
from lmscale.files import output_folder, remote
from lmscale.runs.commits import Commit
from lmscale.runs.exports import record_export

SHA = "5" * 64


def key(name: bytes, value: bytes) -> bytes:
    return len(name).to_bytes(8, "little") + name + value


TYPE, OWN = key(b"general.file_type", b"\4\0\0\0\0\0\0\0"), key(MARK_OF_FILE, SHA.encode())
GGUF = b"GGUF" + TYPE + OWN


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with open_s3("exports") as address:
        yield address


@pytest.fixture
def place(s3, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.001)
    return f"s3://exports/{tmp_path.name}"


def at(url: str, *, is_file: bool = False) -> RemoteExport:
    return open_remote(url, is_file=is_file, retries=2)


def make(folder: Path, *, weights: bytes = b"weights", sha256: str = SHA) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    (folder / MARK).write_text(json.dumps({"checkpoint": sha256}))
    return folder


def names_at(url: str) -> set[str]:
    store, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {name.removeprefix(path + "/") for name in store.find(path)}


def going_to(out: str, work: Path, *, is_file: bool = False, force: bool = False) -> Destination:
    return Destination(place=out, is_file=is_file, force=force, work=work, retries=2)


def export(out: str, work: Path, *, is_file: bool = False, force: bool = False, **made) -> None:
    with going_to(out, work, is_file=is_file, force=force).open(no_bar) as path:
        if is_file:
            path.write_bytes(GGUF)
        else:
            make(path, **made)


WHOLE = {"model.safetensors", "config.json", MARK}


def test_an_export_is_sent_when_it_is_whole_and_replaces_what_lmscale_wrote(place, tmp_path):
    work = tmp_path / "work"
    export(place, work)
    assert names_at(place) == WHOLE and not list(work.iterdir())
    store = fsspec.filesystem("s3")
    store.pipe_file(f"{place}/model-00001-of-00002.safetensors", b"of the export before")
    store.pipe_file(f"{place}/evaluation/theirs.json", b"of a user")
    export(place, work, weights=b"others")
    assert names_at(place) == WHOLE | {"evaluation/theirs.json"}
    assert store.cat_file(f"{place}/model.safetensors") == b"others"
    export(f"{place}.gguf", work, is_file=True)
    export(f"{place}.gguf", work, is_file=True)
    assert at(f"{place}.gguf", is_file=True).read_mark()
    assert not store.exists(f"{place}.gguf.{PROBE}")


def test_what_lmscale_did_not_write_stays_unless_it_is_forced(place, tmp_path):
    store = fsspec.filesystem("s3")
    store.pipe_file(f"{place}/notes.txt", b"a user's")
    store.pipe_file(f"{place}.gguf", b"GGUF of another program")
    for out, is_file in ((place, False), (f"{place}.gguf", True)):
        with pytest.raises(ConfigError, match="lmscale did not write it"):
            export(out, tmp_path / "work", is_file=is_file)
    assert names_at(place) == {"notes.txt"} and not (tmp_path / "work").exists()
    export(place, tmp_path / "work", force=True)
    assert names_at(place) == WHOLE
    store.pipe_file(f"{place}/step-000000002/manifest.json", b"of a checkpoint")
    with pytest.raises(ConfigError, match="holds checkpoints of a run"):
        export(f"{place}/step-000000002", tmp_path / "work", force=True)


@pytest.mark.parametrize(
    "head",
    [
        b"from lmscale.checkpoint.load import open_weights  # general.file_type",
        b"GGUF" + OWN + TYPE,  # llama-quantize puts the type of its weights behind all
        b"GGUF" + TYPE + b"lmscale.checkpoint",
        TYPE + OWN,
    ],
)
def test_a_file_that_only_speaks_of_lmscale_is_not_its_own(head, tmp_path):
    assert is_own_file(GGUF) and not is_own_file(head)
    out = f"memory://{tmp_path.name}/m.gguf"
    fsspec.filesystem("memory").pipe_file(out, head)
    with pytest.raises(ConfigError, match="lmscale did not write it"):
        export(out, tmp_path / "work", is_file=True)


def test_until_an_export_is_sent_nothing_makes_a_place_lmscales(tmp_path):
    """As a kill may come meanwhile, behind which nothing runs."""
    store, place = fsspec.filesystem("memory"), f"memory://{tmp_path.name}/theirs"
    store.pipe_file(f"{place}/notes.txt", b"a user's")
    with going_to(place, tmp_path / "work", force=True).open(no_bar) as path:
        assert names_at(place) == {"notes.txt"}
        make(path)
    with going_to(f"{place}.gguf", tmp_path / "work", is_file=True).open(no_bar) as path:
        assert names_at(f"memory://{tmp_path.name}") == {f"theirs/{name}" for name in WHOLE}
        path.write_bytes(GGUF)
    store.pipe_file(f"{place}2/{PROBE}", b"of a kill between writing and removing it")
    export(f"{place}2", tmp_path / "work")
    assert names_at(f"{place}2") == WHOLE
    store.pipe_file(f"{place}3/{PROBE}", b"")
    store.pipe_file(f"{place}3/notes.txt", b"a user's")
    with pytest.raises(ConfigError, match="lmscale did not write it"):
        export(f"{place}3", tmp_path / "work")


def test_an_export_that_cannot_be_made_leaves_what_stood_there(place, tmp_path):
    export(place, tmp_path)
    with pytest.raises(DataError), going_to(place, tmp_path).open(no_bar) as path:
        path.mkdir()
        raise DataError("other answers")
    assert names_at(place) == WHOLE and not list(tmp_path.glob(".*"))


def test_an_upload_that_is_cut_is_tried_again_and_a_broken_one_is_no_export(place, s3, tmp_path):
    weights = bytes(2**20)
    made = make(tmp_path / "made", weights=weights)
    with open_proxy(s3) as proxy:
        proxy.cuts, proxy.cut_after = 2, 1000  # the connection of the small BEGUN, and the next
        at(place).send(made, lambda size: None)
        assert proxy.spoiled in (1, 2) and names_at(place) == WHOLE

        def break_from_here(amount: float) -> None:
            proxy.cuts, proxy.cut_after = 99, 1

        with pytest.raises(TransientError, match="could not be written"):
            impatient = open_remote(place, is_file=False, retries=0)
            impatient.claim(force=False)
            impatient.send(made, break_from_here)
        proxy.cuts = 0
        left = names_at(place)
        assert MARK not in left and BEGUN in left and len(left) > 1
        assert at(place).read_mark() is None
        export(place, tmp_path / "work")  # nobody has to clear it away
        assert names_at(place) == WHOLE


def test_a_place_that_cannot_be_one_is_told_before_anything_is_made_and_without_the_secret(
    s3, tmp_path
):
    refused = {
        "s3://no-such-bucket/exports/1": "Make the bucket, or correct --out",
        "s3://exports": "is a whole bucket: name a place in it",
        "https://example.org/exports/1": r"Take s3:// or gs://",
        "s3://me:hunter2@exports/1": "has credentials or a query in it",
        "ftp9://there/exports": "unknown kind of URL",
    }
    for out, why in refused.items():
        with pytest.raises((ConfigError, DataError), match=why) as caught:
            export(out, tmp_path / "work")
        assert "hunter2" not in str(caught.value)
    with (
        environment(AWS_SECRET_ACCESS_KEY="hunter2"),
        open_proxy(s3) as proxy,
        pytest.raises(DataError, match="access is refused") as caught,
    ):
        proxy.answers = [(403, b"<Error><Code>AccessDenied</Code></Error>")] * 9
        proxy.methods = (b"GET", b"PUT", b"POST")
        export("s3://exports/refused", tmp_path / "work")
    assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "work").exists()


def commit_of(step: int, sha256: str) -> Commit:
    return Commit(step=step, n=step, folder="x", sha256=sha256, bytes=1, reason="regular", time=0.0)


@pytest.mark.parametrize("is_remote", [True, False])
def test_the_newest_exports_stay_and_only_those_of_the_run_go(is_remote, tmp_path, monkeypatch):
    folder = f"memory://{tmp_path.name}" if is_remote else str(tmp_path / "exports")

    def export_step(step: int, sha256: str) -> str:
        out = f"{folder}/step-{step:09d}"
        if is_remote:
            export(out, tmp_path / "work", sha256=sha256)
        else:
            make(Path(out), sha256=sha256)
        return out

    for step, recorded in ((2, "2" * 64), (4, "4" * 64), (6, "6" * 64), (8, "8" * 64)):
        export_step(step, "another's" if step == 4 else recorded)
        record_export(tmp_path, commit_of(step, recorded), "done")
    export_step(3, "of another run")
    export_step(5, "5" * 64)
    record_export(tmp_path, commit_of(5, "5" * 64), "left out")
    # A rewind has brought the run back to step 2, which is the newest of its exports therefore.
    record_export(tmp_path, commit_of(2, "2" * 64), "done")
    newest = export_step(10, "a" * 64)
    removed = list(remove_old_exports(tmp_path, newest, keep=2, retries=0))
    assert [each.rpartition("-")[2] for each in removed] == ["000000006", "000000008"]
    steps = {int(name.partition("-")[2].partition("/")[0]) for name in list_names(folder)}
    assert steps == {2, 3, 4, 5, 10}
    assert list(remove_old_exports(tmp_path, newest, keep=2, retries=0)) == []


def list_names(folder: str) -> set[str]:
    if "://" in folder:
        return names_at(folder)
    return {path.name for path in Path(folder).iterdir()}


BESIDE = """
import sys, time
from lmscale.watch.parent import end_with_parent
end_with_parent(int(sys.argv[1]))
print("here", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())],
    stdout=subprocess.PIPE, start_new_session=True)
print(child.pid, child.stdout.readline(), flush=True)
time.sleep(60)
"""


def test_what_exports_beside_a_rank_ends_with_it():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, BESIDE], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[0])
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not is_gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_killed_upload_has_left_here_goes_with_the_next_one_of_any_name(tmp_path):
    out, work = f"memory://{tmp_path.name}/step-000000004", tmp_path / "work"
    make(work / ".upload.0123abcd.partial/step-000000002")
    export(out, work)
    assert names_at(out) == WHOLE and not list(work.iterdir())


def test_a_removal_that_was_killed_is_cleared_away_by_the_next_export(tmp_path):
    path = make(tmp_path / "out")
    work = tmp_path / ".out.0123abcd.partial"
    work.mkdir()
    os.replace(path, work / "out")
    with output_folder.output_folder(path) as new:
        (new / "a").touch()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
