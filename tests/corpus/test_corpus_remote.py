"""Raw files elsewhere: each byte once, however a network breaks, and known by their state."""

from __future__ import annotations

import gzip
import io
import json
import os

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from s3_server import open_proxy, open_s3
from web_server import open_web

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus
from lmscale.corpus.documents import load_corpus_manifest, read_documents
from lmscale.corpus.inputs import find_inputs
from lmscale.errors import DataError, TransientError
from lmscale.files import found, remote, remote_reading
from lmscale.files.found import find_files

TEXTS = [f"text {number} {os.urandom(100).hex()}" for number in range(1800)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0)
    monkeypatch.setattr(remote_reading, "PIECE_BYTES", 4096)
    monkeypatch.setattr(remote_reading, "BLOCK_BYTES", 10_000)


@pytest.fixture
def web():
    with open_web({"/a.jsonl": LINES}) as server:
        yield server


@pytest.fixture(scope="module")
def s3():
    with open_s3("raw") as address:
        yield address


def parquet(texts=TEXTS):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), buffer, row_group_size=500)
    return buffer.getvalue()


def config_of(folder, *inputs, **settings):
    sources = {"s": {"inputs": list(inputs), "separator": settings.pop("separator", "")}}
    tree = {"folder": str(folder), "sources": sources, "heldout_fraction": 0, **settings}
    return CorpusConfig.model_validate(tree)


def build(folder, *inputs, **settings):
    build_corpus(config_of(folder, *inputs, **settings), processes=1)
    return [*read_documents(folder / "s/train")]


@pytest.mark.parametrize("gives_ranges", [True, False])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"])
def test_a_connection_that_breaks_loses_and_doubles_no_text(tmp_path, web, name, gives_ranges):
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rsplit(".", 1)[-1], bytes)
    content = pack("\n".join(TEXTS).encode() if name == "a.txt" else LINES)
    web.files["/" + name], web.gives_ranges = content, gives_ranges
    # Of what has arrived when a connection ends it may all be asked for again.
    web.breaks_after = [0, 1, 17, 150_000, 170_000, 190_000]
    texts = build(tmp_path, f"{web.url}/{name}", separator="\n" if name == "a.txt" else "")
    assert texts == TEXTS
    assert web.breaks_after in ([], [190_000], [170_000, 190_000])  # what is left may be less


def test_a_broken_connection_is_taken_up_at_its_byte(web):
    web.breaks_after = [150_000]
    web.may_break.clear()  # it ends once something of it was read
    (file,) = find_files(f"{web.url}/a.jsonl", retries=3).files
    with file.open() as opened:
        first = opened.read(4096)
        web.may_break.set()
        assert first + opened.read() == LINES
    (wanted,) = (wanted for _, _, wanted in web.asked if wanted)
    assert int(wanted.removeprefix("bytes=").rstrip("-")) >= 4096


@pytest.mark.parametrize("place", ["web", "s3"])
def test_parquet_elsewhere_is_read_in_parts(tmp_path, web, s3, place):
    content = parquet()
    if place == "web":
        url, web.files["/a.parquet"] = f"{web.url}/a.parquet", content
        web.breaks_after = [3, 100, 9000]
    else:
        url = "s3://raw/p/a.parquet"
        put("p/a.parquet", content)
    assert build(tmp_path, url) == TEXTS
    if place == "web":
        assert web.breaks_after == []
        web.gives_ranges = False
        with pytest.raises(DataError, match=r"a\.parquet: its server gives no parts of files"):
            build(tmp_path / "again", url)


def put(name, content, bucket="raw"):
    filesystem, _ = remote.open_filesystem(f"s3://{bucket}/x", use_listings_cache=False)
    filesystem.pipe_file(f"{bucket}/{name}", content)


def names_of(pattern):
    match = find_files(pattern)
    return sorted(file.location.partition("/raw/")[2] for file in match.files)


def test_patterns_over_a_bucket_name_what_they_would_name_here(tmp_path, s3, monkeypatch):
    names = ["1.jsonl", "2.jsonl", "b/3.jsonl", "b/c/4.jsonl", ".x.jsonl", ".h/5.jsonl"]
    names += ["b.jsonl/6.jsonl", "[1].jsonl", "b/7.txt"]
    for name in names:
        put(f"g/{name}", b"{}")
        (tmp_path / "raw/g" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw/g" / name).write_bytes(b"{}")
    patterns = ["*.jsonl", "**/*.jsonl", "*/*.jsonl", "[12].jsonl", "[1].jsonl", "b/**", "**/c/*"]
    patterns += ["**", ".*/*", "[!1]*.jsonl", "b/3.jsonl", "?.jsonl"]
    for pattern in patterns:
        expected = names_of(f"{tmp_path}/raw/g/{pattern}")
        assert (names_of(f"s3://raw/g/{pattern}"), pattern) == (expected, pattern)
        assert expected
    with pytest.raises(DataError, match="name the bucket"):
        find_files("s3://*/1.jsonl")
    assert find_files("s3://raw/g").folders == ["s3://raw/g"]


def test_a_bucket_s_files_are_built_once_and_anew_when_one_changes(tmp_path, s3):
    for number in range(3):
        put(f"k/{number}.jsonl", json.dumps({"text": f"text {number}"}).encode())
    config = config_of(tmp_path, "s3://raw/k/*.jsonl")
    assert build(tmp_path, "s3://raw/k/*.jsonl") == ["text 0", "text 1", "text 2"]
    assert not build_corpus(config, processes=1).built["s"].is_new
    assert load_corpus_manifest(tmp_path / "s").made_by["inputs"] == ["s3://raw/k/*.jsonl"]
    put("k/1.jsonl", json.dumps({"text": "text X"}).encode())  # as long as before
    with pytest.raises(DataError, match="raw files that have changed since"):
        build_corpus(config, processes=1)
    build_corpus(config, processes=1, force=True)
    assert [*read_documents(tmp_path / "s/train")] == ["text 0", "text X", "text 2"]


def test_a_bucket_s_file_comes_whole_over_a_network_that_cuts(tmp_path, s3):
    put("w/a.jsonl", LINES)
    with open_proxy(s3) as proxy:
        proxy.methods, proxy.cuts, proxy.cut_after = (b"GET",), 3, 30
        assert build(tmp_path, "s3://raw/w/a.jsonl") == TEXTS
        assert proxy.spoiled == 3


@pytest.mark.parametrize("place", ["web", "s3", "here"])
def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, web, s3, place, monkeypatch):
    places = {
        "web": f"{web.url}/a.jsonl",
        "s3": "s3://raw/c/a.jsonl",
        "here": f"{tmp_path}/a.jsonl",
    }
    put("c/a.jsonl", LINES)
    (tmp_path / "a.jsonl").write_bytes(LINES)
    config = config_of(tmp_path / "out", places[place])
    (file,) = find_inputs(config)["s"]
    monkeypatch.setattr("lmscale.corpus.build.find_inputs", lambda _: {"s": (file,)})
    changed = LINES.replace(b"text 7 ", b"text  7")
    web.files["/a.jsonl"] = changed
    put("c/a.jsonl", changed)
    (tmp_path / "a.jsonl").write_bytes(changed + b"\n")
    with pytest.raises(DataError) as caught:
        build_corpus(config, processes=1)
    (problem,) = caught.value.problems
    assert "a.jsonl: changed while it was read: " in problem


def test_what_a_web_server_changes_between_two_answers_is_not_mixed(tmp_path, web):
    web.breaks_after = [300_000]
    web.may_break.clear()  # or the end might be seen, and all be asked for anew, before the change
    (file,) = find_files(f"{web.url}/a.jsonl", retries=3).files
    with file.open() as opened:
        assert opened.read(4096) == LINES[:4096]
        web.files["/a.jsonl"] = LINES[::-1]
        web.may_break.set()
        with pytest.raises(DataError, match="changed while it was read: its server calls it"):
            opened.read()


def told(*inputs, **settings):
    with pytest.raises((DataError, TransientError)) as caught:
        find_inputs(config_of("/nowhere", *inputs, **settings))
    return caught.value


def test_each_kind_of_refusal_is_one_line_that_says_what_to_do(web, s3):
    web.statuses = {"/secret.jsonl": 403, "/login.jsonl": 401}
    web.moved = {"/far.jsonl": f"{web.url}/secret.jsonl?X-Amz-Signature=feedbeef"}
    inputs = ["/secret.jsonl", "/login.jsonl", "/gone.jsonl", "/far.jsonl", "/*.jsonl"]
    error = told(*(web.url + path for path in inputs), "s3://raw/none/*.jsonl", "s3://no/x.jsonl")
    secret, login, gone, far, pattern, bucket, nothing = error.problems
    for line in (secret, login, far):
        assert "access is refused (ClientResponseError: 40" in line
    assert "gone.jsonl: there is no such file, folder or bucket. Check the URL." in gone
    assert "a web server lists no files" in pattern
    assert "s3://no/x.jsonl: there is no such file, folder or bucket" in bucket
    assert nothing == "corpus.sources.s.inputs: no file matches s3://raw/none/*.jsonl."
    assert "feedbeef" not in str(error)
    assert all(line.startswith("corpus.sources.s.inputs: ") for line in error.problems)


def test_a_listing_that_is_refused_is_not_taken_for_an_empty_one(s3, monkeypatch):
    with open_proxy(s3) as proxy:
        proxy.methods = (b"GET",)
        proxy.answers = [(403, b"<Error><Code>AccessDenied</Code></Error>")] * 2
        assert "access is refused" in str(told("s3://raw/k/*/*.jsonl"))
    memory = fsspec.filesystem("memory")
    memory.pipe({"/here/a/1.txt": b"x", "/here/b/2.txt": b"x"})
    assert len(find_files("memory://here/*/*.txt").files) == 2
    listed = type(memory).ls

    def ls(self, path, **options):
        if path.endswith("/b"):
            raise PermissionError("refused")
        return listed(self, path, **options)

    monkeypatch.setattr(type(memory), "ls", ls)
    assert "access is refused (PermissionError: refused)" in str(told("memory://here/*/*.txt"))
    looked_up = type(memory).info

    def info(self, path, **options):  # as a bucket does of which one folder alone may be listed
        if "*" in path:
            raise PermissionError("refused")
        return looked_up(self, path, **options)

    monkeypatch.setattr(type(memory), "info", info)
    assert [file.name for file in find_files("memory://here/a/*.txt").files] == ["1.txt"]


def test_a_server_that_does_not_answer_may_answer_another_start():
    error = told("http://127.0.0.1:9/a.jsonl", "http://127.0.0.1:9/b.jsonl", retries=1)
    assert isinstance(error, TransientError)
    assert [line.split(" (tried 2 times): ")[0] for line in error.problems] == [
        f"corpus.sources.s.inputs: http://127.0.0.1:9/{name}.jsonl: could not be read"
        for name in "ab"
    ]


def test_a_web_page_in_place_of_a_file_is_told(tmp_path, web):
    web.files["/a.jsonl"] = b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>"
    web.types["/a.jsonl"] = "text/html"
    with pytest.raises(DataError, match=r"a\.jsonl: a web page came, and not the file\. Does"):
        build(tmp_path, f"{web.url}/a.jsonl")
    web.files["/a.html"] = b"<html><body>Read me</body></html>"
    assert build(tmp_path, f"{web.url}/a.html") == ["Read me"]


def test_a_server_that_tells_nothing_is_read_with_a_warning(tmp_path, web, caplog):
    web.tells = False
    assert build(tmp_path, f"{web.url}/a.jsonl?version=2") == TEXTS
    (line,) = [record.getMessage() for record in caplog.records if "ETag" in record.getMessage()]
    assert line.startswith(f"corpus.sources.s: {web.url}/a.jsonl?version=2: told with neither")
    assert "?version=2: empty, or told without its size: text" in caplog.text


def test_a_packed_file_that_a_server_says_is_packed_is_unpacked_once(tmp_path, web):
    web.files["/a.jsonl.gz"] = gzip.compress(LINES)
    web.headers["Content-Encoding"] = "gzip"
    assert build(tmp_path, f"{web.url}/a.jsonl.gz") == TEXTS


def test_an_empty_file_elsewhere_is_empty(tmp_path, web, s3):
    web.files["/e.jsonl"] = b""
    put("e/e.jsonl", b"")
    inputs = [f"{web.url}/e.jsonl", "s3://raw/e/e.jsonl", f"{web.url}/a.jsonl"]
    assert build(tmp_path, *inputs) == TEXTS
    assert load_corpus_manifest(tmp_path / "s").files_without_text == 2


def test_parts_are_of_like_size_by_what_the_servers_say(s3, web, tmp_path):
    from lmscale.corpus.build import _builder

    for number in range(6):
        put(f"n/{number}.jsonl", LINES)
    inputs = ["s3://raw/n/*.jsonl", f"{web.url}/a.jsonl"]
    config = config_of(tmp_path, *inputs, part_bytes=2 * len(LINES))
    (target,) = _builder(config, 1).targets
    assert [part.bytes for part in target.units] == [2 * len(LINES)] * 3 + [len(LINES)]
    assert found.LISTING_RETRIES < config.retries
