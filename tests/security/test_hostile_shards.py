"""Shards and tars of raw text come from elsewhere: nothing in them leaves its place or runs."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from hostile import make_trap

from lmscale.config.corpus import CorpusSourceConfig
from lmscale.corpus.account import Account
from lmscale.corpus.inputs import RawFile
from lmscale.corpus.readers import read_file
from lmscale.errors import DataError
from lmscale.files.found import find_files
from lmscale.files.reading import sha256_file
from lmscale.shards.manifest import load_manifest, parse_manifest, render_manifest, save_manifest
from lmscale.shards.reader import open_shard
from lmscale.shards.verify import verify_dataset


def member(name, kind=tarfile.REGTYPE, *, target="", content=b"text"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content


def member_with_a_nul():
    """Only an attribute can hold it: the header's own field would end there."""
    info, content = member("a\0b.txt")
    info.pax_headers = {"path": info.name}
    return info, content


EVIL = {
    "an absolute path": member("/etc/cron.d/x.txt"),
    "leads out": member("a/../../x.txt"),
    "leads out of the folder": member("a\\..\\..\\x.txt"),
    "a name that no file can have": member_with_a_nul(),
    "a symbolic link": member("x.txt", tarfile.SYMTYPE, target="/etc/passwd"),
    "a hard link": member("x.txt", tarfile.LNKTYPE, target="../secret"),
    "a device": member("x.txt", tarfile.CHRTYPE),
    "a pipe": member("x.txt", tarfile.FIFOTYPE),
    "of the unknown type": member("x.txt", b"9"),
}


def append(path, evil):
    """Add a member before the end of a tar, as an attacker would who keeps the rest whole."""
    info, content = evil
    with tarfile.open(path, "a") as tar:
        tar.addfile(info, io.BytesIO(content))


def read_tar(path, **settings):
    rules = CorpusSourceConfig(inputs=(str(path),), **settings)
    (found,) = find_files(str(path)).files
    file = RawFile(**vars(found), format="webdataset", rules=rules)
    account = Account("web", rules)
    texts = ["".join(text) for _, text in read_file(file, account)]
    account.check()
    return texts


@pytest.fixture
def dataset(tiny_data, tmp_path):
    return shutil.copytree(tiny_data / "shards/a/train", tmp_path / "train")


def reseal(dataset, number=0, **changes):
    """The attacker makes the manifest too: sizes and hashes are those of what is there."""
    manifest = load_manifest(dataset)
    shards = list(manifest.shards)
    path = dataset / shards[number].name
    entry = {**vars(shards[number]), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    shards[number] = type(shards[number])(**{**entry, **changes})
    tree = {**vars(manifest), "shards": tuple(shards)}
    tree.pop("fingerprint", None)
    save_manifest(type(manifest)(**tree), dataset)
    return shards[number]


@pytest.mark.parametrize("kind", EVIL)
def test_an_evil_member_of_a_raw_tar_is_refused_and_named(tmp_path, kind):
    path = tmp_path / "web.tar"
    with tarfile.open(path, "w") as tar:
        for info, content in (member("good.txt"), EVIL[kind]):
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=kind) as caught:
        read_tar(path)
    assert repr(EVIL[kind][0].name) in str(caught.value) and str(path) in str(caught.value)


# Sparse files as GNU tar writes them: 8 GiB of nothing in a tar of 10 kB.
SPARSE_SIZE = 8 << 30


def sparse_member(kind):
    info = tarfile.TarInfo("x.txt")
    if kind == "gnu":
        info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"%011o\0%011o\0" % (0, 0)  # one piece, at 0, of nothing
        header[483:495] = b"\x80" + SPARSE_SIZE.to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
        return bytes(header)
    fields = {"GNU.sparse.size": str(SPARSE_SIZE), "GNU.sparse.map": "0,0"}
    if kind == "pax 1.0":
        fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        fields |= {"GNU.sparse.realsize": str(SPARSE_SIZE), "GNU.sparse.name": "x.txt"}
        info.size = 512
    info.pax_headers = fields
    buffer = info.tobuf(tarfile.PAX_FORMAT)
    return buffer + (b"1\n0\n0\n".ljust(512, b"\0") if kind == "pax 1.0" else b"")


@pytest.mark.parametrize("kind", ["gnu", "pax 0.1", "pax 1.0"])
def test_a_sparse_member_is_refused_before_it_takes_any_memory(tmp_path, kind):
    path = tmp_path / "web.tar"
    path.write_bytes(sparse_member(kind) + bytes(1024))
    with tarfile.open(path) as tar:
        found = tar.getmembers()
    assert [(one.issparse(), one.size) for one in found] == [(True, SPARSE_SIZE)]
    with pytest.raises(DataError, match="member 'x.txt' is a sparse file"):
        read_tar(path)


def test_a_packed_member_that_unpacks_to_too_much_is_broken_and_never_read(tmp_path, monkeypatch):
    read = []
    extract = tarfile.TarFile.extractfile
    monkeypatch.setattr(
        tarfile.TarFile, "extractfile", lambda tar, one: read.append(one.name) or extract(tar, one)
    )
    path = tmp_path / "web.tar"
    with tarfile.open(path, "w:xz") as tar:
        for name, size in (("a.txt", 500), ("b.json", 2001), ("c.jpg", 9000), ("d.txt", 2001)):
            info, content = member(name, content=b"a" * size)
            tar.addfile(info, io.BytesIO(content))
    assert list(map(len, read_tar(path, max_record_chars=500, max_bad_records=2))) == [500]
    assert read == ["a.txt"]
    with pytest.raises(
        DataError, match="'b.json', .*'d.txt': longer than .*web.max_record_chars = 500"
    ):
        read_tar(path, max_record_chars=500)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_packed_header_that_unpacks_to_too_much_is_refused(tmp_path, kind):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 2 << 20
    path = tmp_path / "web.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(info, io.BytesIO(b"a" * info.size))
        tar.addfile(*map_content(member("a.txt")))
    with pytest.raises(DataError, match="a header of 2,097,152 bytes, more than any name needs"):
        read_tar(path)


def test_folders_and_files_in_them_are_taken(tmp_path):
    path = tmp_path / "web.tar"
    with tarfile.open(path, "w") as tar:
        for info, content in (member("./a", tarfile.DIRTYPE), member("./a/good.txt")):
            tar.addfile(info, io.BytesIO(content))
    assert read_tar(path) == ["text"]


@pytest.mark.parametrize("kind", EVIL)
def test_an_evil_member_of_a_shard_is_found_and_named(dataset, kind):
    name = load_manifest(dataset).shards[0].name
    append(dataset / name, EVIL[kind])
    reseal(dataset)
    problems = "\n".join(verify_dataset(dataset))
    assert kind in problems and repr(EVIL[kind][0].name) in problems and name in problems


def test_an_index_that_is_a_link_is_refused(dataset):
    entry = load_manifest(dataset).shards[0]
    path = dataset / entry.name
    content = bytearray(path.read_bytes())
    header = tarfile.TarInfo.frombuf(content[entry.index_offset :][:512], "utf-8", "strict")
    header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
    content[entry.index_offset : entry.index_offset + 512] = header.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(content)
    with pytest.raises(DataError, match="'__index__/blocks.npy' is a symbolic link"):
        open_shard(path, reseal(dataset), "uint16")


def object_array(trap):
    """An .npy file whose header announces objects: numpy would unpickle what follows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    return file.getvalue() + trap


def test_a_pickle_in_a_shards_index_is_refused_and_never_loaded(dataset, tmp_path):
    mark = tmp_path / "it ran"
    entry = load_manifest(dataset).shards[0]
    path = dataset / entry.name
    content = path.read_bytes()[: entry.index_offset]
    evil = object_array(make_trap(mark))
    with io.BytesIO() as tail:
        with tarfile.open(fileobj=tail, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            tar.addfile(*map_content(member("__index__/blocks.npy", content=evil)))
        path.write_bytes(content + tail.getvalue())
    with pytest.raises(DataError, match="no readable index"):
        open_shard(path, reseal(dataset), "uint16")
    assert verify_dataset(dataset)
    assert not mark.exists()


def map_content(evil):
    return evil[0], io.BytesIO(evil[1])


def test_a_pickle_in_place_of_a_shards_tokens_is_refused_and_never_loaded(dataset, tmp_path):
    mark = tmp_path / "it ran"
    entry = load_manifest(dataset).shards[0]
    path = dataset / entry.name
    evil = object_array(make_trap(mark))
    at = int(open_shard(path, entry, "uint16").index[0, 0]) - 128
    content = bytearray(path.read_bytes())
    content[at : at + len(evil)] = evil
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        open_shard(path, reseal(dataset), "uint16")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../a.tar", "/etc/passwd", "b/../../a.tar", "pipe:id", "..", "x\\y"),
        *("~a.tar", "-rf.tar", "|id", "a.tar?x=1", "a.tar#x", "*.tar", "%2e%2e%2fa.tar"),
        "a\nb.tar",
    ],
)
def test_a_shard_that_lies_elsewhere_is_refused(dataset, name):
    shutil.copy(next(iter(dataset.glob("*.tar"))), dataset.parent / "a.tar")
    reseal(dataset, name=name)
    with pytest.raises(DataError, match="the file name .* it is refused"):
        load_manifest(dataset)


def test_every_evil_name_in_a_manifest_is_told(dataset):
    tree = render_manifest(load_manifest(dataset))
    for number, entry in enumerate(tree["shards"]):
        entry["name"] = f"../{number}"
    with pytest.raises(DataError) as caught:
        parse_manifest(json.dumps(tree, default=vars).encode())
    assert len(caught.value.problems) == min(8, len(tree["shards"]))
