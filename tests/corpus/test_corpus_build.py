"""The corpus holds what the rules say, appears whole, and is not rebuilt for nothing."""

import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus
from lmscale.corpus.clean import digest_of, is_heldout, split_text, strip_html
from lmscale.corpus.documents import load_corpus_manifest, read_documents
from lmscale.errors import ConfigError, DataError
from lmscale.tasks.target import ArrayTask


def make_config(tmp_path, texts, **settings):
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    sources = {"s": {"inputs": [str(raw)]}}
    return CorpusConfig.model_validate(
        {"folder": str(tmp_path / "corpus"), "sources": sources, "heldout_fraction": 0, **settings}
    )


def texts_of(config, split="train"):
    return list(read_documents(f"{config.folder}/s/{split}"))


def test_dropped_documents_are_counted_by_reason_and_nothing_else_is_lost(tmp_path):
    texts = ["one", "", " \n", "ab", "one", "x" * 21, "two", "e\u0301t\u00e9", "\u00e9t\u00e9"]
    config = make_config(tmp_path, texts, min_chars=3, max_chars=20, on_overlong="drop")
    manifest = build_corpus(config).built["s"].manifest
    assert texts_of(config) == ["one", "two", "\u00e9t\u00e9"]
    assert manifest.dropped == {"empty": 2, "short": 1, "overlong": 1, "duplicate": 2}
    assert manifest.documents_read == len(texts)
    assert manifest.documents("train") + sum(manifest.dropped.values()) == len(texts)
    assert manifest.text_bytes("train") == sum(len(t.encode()) for t in texts_of(config))


def test_skipped_broken_records_are_counted_too(tmp_path):
    config = make_config(tmp_path, ["one"])
    with open(tmp_path / "raw.jsonl", "a") as file:
        file.write("{broken\n")
    sources = {"s": {"inputs": [str(tmp_path / "raw.jsonl")], "max_bad_records": 1}}
    config = CorpusConfig.model_validate({**config.model_dump(), "sources": sources})
    manifest = build_corpus(config).built["s"].manifest
    assert (manifest.documents_read, manifest.dropped) == (2, {"broken": 1})


@pytest.mark.parametrize(
    ("form", "expected"), [("NFC", "\u00e9ﬁ"), ("NFKC", "\u00e9fi"), ("none", "e\u0301ﬁ")]
)
def test_texts_are_normalised_as_configured(tmp_path, form, expected):
    config = make_config(tmp_path, ["e\u0301ﬁ"], normalization=form)
    build_corpus(config)
    assert texts_of(config) == [expected]


def test_overlong_documents_are_split_without_losing_a_character(tmp_path):
    text = "line of words\n" * 40
    config = make_config(tmp_path, [text], max_chars=100)
    manifest = build_corpus(config).built["s"].manifest
    pieces = texts_of(config)
    assert "".join(pieces) == text
    assert all(len(piece) <= 100 and piece.endswith("\n") for piece in pieces)
    assert manifest.cut == {"split": 1}
    path = f"{config.folder}/s/train/documents-00000.jsonl"
    with open(path) as file:
        assert [json.loads(line)["id"] for line in file][:2] == ["raw.jsonl:1#1", "raw.jsonl:1#2"]


def test_overlong_documents_can_be_truncated(tmp_path):
    config = make_config(tmp_path, ["x" * 25], max_chars=10, on_overlong="truncate")
    manifest = build_corpus(config).built["s"].manifest
    assert (texts_of(config), manifest.cut) == (["x" * 10], {"truncated": 1})


@given(st.text(alphabet="ab \n中", max_size=200), st.integers(1, 30))
def test_pieces_joined_are_the_text(text, max_chars):
    pieces = split_text(text, max_chars)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= max_chars for piece in pieces) or text == ""


def test_html_leaves_the_visible_text():
    page = """<html><head><title>T</title><style>p{}</style></head><body><h1>Head</h1>
<p>One &amp; <b>two</b>&#x4E2D;</p><script>var x = "<p>no</p>";</script>
<ul><li>a</li><li>b</li></ul>
<pre>x  =  1
    y</pre></body></html>"""
    text = strip_html(page)
    assert [line for line in text.split("\n") if line] == [
        "Head", "One & two中", "a", "b", "x  =  1", "    y",
    ]  # fmt: skip
    assert strip_html("plain 1 > 0\n\n\n  text") == "plain 1 > 0\n\n\n  text"


def test_the_heldout_part_is_chosen_by_the_text_alone_and_only_grows_with_its_fraction(tmp_path):
    texts = [f"document {number}" for number in range(2000)]
    small = {t for t in texts if is_heldout(digest_of(t), 0.05)}
    large = {t for t in texts if is_heldout(digest_of(t), 0.2)}
    assert small < large
    assert 320 < len(large) < 480  # binomial: 400 ± 4.5 sigma
    config = make_config(tmp_path, texts[::-1], heldout_fraction=0.2)
    build_corpus(config)
    assert set(texts_of(config, "heldout")) == large
    assert set(texts_of(config)) == set(texts) - large


def test_an_unchanged_source_is_not_rebuilt_and_a_changed_one_needs_force(tmp_path):
    config = make_config(tmp_path, ["one", "two"])
    assert build_corpus(config).built["s"].is_new
    written = os.stat(f"{config.folder}/s/manifest.json")
    assert not build_corpus(config).built["s"].is_new
    assert os.stat(f"{config.folder}/s/manifest.json") == written
    changed = make_config(tmp_path, ["one", "two", "three"])
    with pytest.raises(DataError, match="raw files that have changed since.*--force"):
        build_corpus(changed)
    with pytest.raises(DataError, match=r"other settings \(min_chars\)"):
        build_corpus(changed.model_copy(update={"min_chars": 2}))
    assert texts_of(config) == ["one", "two"]
    assert build_corpus(changed, force=True).built["s"].is_new
    assert texts_of(config) == ["one", "two", "three"]


def test_a_folder_that_is_no_corpus_is_never_replaced(tmp_path):
    config = make_config(tmp_path, ["one"])
    os.makedirs(f"{config.folder}/s")
    with open(f"{config.folder}/s/precious.txt", "w") as file:
        file.write("mine")
    with pytest.raises(DataError, match="holds no corpus of lmscale"):
        build_corpus(config)
    with pytest.raises(DataError):
        build_corpus(config, force=True)
    assert os.listdir(f"{config.folder}/s") == ["precious.txt"]


@pytest.mark.parametrize("spoil", [lambda text: text[:60], lambda text: text.replace("1", "2")])
def test_what_is_told_to_do_about_a_damaged_manifest_mends_it(tmp_path, spoil):
    config = make_config(tmp_path, ["a text"])
    build_corpus(config)
    folder = tmp_path / "corpus" / "s"
    manifest = folder / "manifest.json"
    manifest.write_text(spoil(manifest.read_text()))
    with pytest.raises(DataError, match=f"Move {folder} away, and build the corpus again"):
        load_corpus_manifest(folder)
    folder.rename(tmp_path / "away")
    build_corpus(config)
    assert texts_of(config) == ["a text"]


def test_several_sources_build_in_processes_as_in_one(tmp_path):
    config = make_config(tmp_path, [f"text {n}" for n in range(50)], heldout_fraction=0.1)
    sources = {name: config.sources["s"] for name in ("a", "b", "c")}
    for processes in (1, 2):
        folder = str(tmp_path / f"out{processes}")
        many = config.model_copy(update={"folder": folder, "sources": sources})
        build_corpus(many, processes=processes)
    one, two = (load_corpus_manifest(tmp_path / f"out{n}" / "b") for n in (1, 2))
    assert one == two


def test_a_source_with_nothing_left_is_an_error_that_says_why(tmp_path):
    config = make_config(tmp_path, ["", " ", "ab"], min_chars=5)
    with pytest.raises(DataError, match=r"no document is left.*2 empty, 1 short"):
        build_corpus(config)
    assert not os.path.exists(f"{config.folder}/s")
    with pytest.raises(ConfigError, match="names no source"):
        build_corpus(CorpusConfig(folder=config.folder))


def test_a_second_builder_is_refused(tmp_path):
    config = make_config(tmp_path, ["one"])
    os.makedirs(config.folder)
    with FileLock(f"{config.folder}/.s.lock"), pytest.raises(DataError, match="another process"):
        build_corpus(config)


def test_a_builder_alone_is_refused_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    config = make_config(tmp_path, ["one"])
    with pytest.raises(DataError, match=r"\.s\.lock: the file system.*no locks.*--task 0/1"):
        build_corpus(config)
    assert os.listdir(config.folder) == [".s.lock"]
    assert build_corpus(config, ArrayTask(0, 1)).built["s"].is_new  # as the message says


def test_a_kill_leaves_nothing_that_looks_like_a_corpus(tmp_path):
    config = make_config(tmp_path, [f"text {n}" for n in range(100)])
    program = f"""
import os, signal
import lmscale.corpus.parts as parts
from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus
write = parts.DocumentWriter.write
def killed(self, document):
    write(self, document)
    if document.id.endswith(":50"):
        os.kill(os.getpid(), signal.SIGKILL)
parts.DocumentWriter.write = killed
build_corpus(CorpusConfig.model_validate({config.model_dump()!r}))
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert not os.path.exists(f"{config.folder}/s")
    build_corpus(config)
    assert len(texts_of(config)) == 100
    assert not [name for name in os.listdir(config.folder) if "building" in name]


@contextmanager
def file_size_limit(size):
    """Writing past ``size`` bytes fails with EFBIG, as a full disk does; Python ignores SIGXFSZ."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("size", [1000, 100_000])
def test_a_full_disk_is_an_error_and_leaves_nothing_behind(tmp_path, size):
    config = make_config(tmp_path, [f"text {n} " * 20 for n in range(2000)])
    with file_size_limit(size), pytest.raises(DataError, match="No space is left.*documents"):
        build_corpus(config)
    assert set(os.listdir(config.folder)) <= {".s.lock"}
    build_corpus(config)
    assert len(texts_of(config)) == 2000


def test_a_full_disk_itself_is_an_error(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root only; EFBIG is tested above")
    try:
        config = make_config(tmp_path, [f"text {n} " * 20 for n in range(2000)])
        config = config.model_copy(update={"folder": str(disk / "corpus")})
        with pytest.raises(DataError, match="No space is left") as caught:
            build_corpus(config)
        assert caught.value.__cause__.errno == errno.ENOSPC  # pyright: ignore
        assert os.listdir(disk / "corpus") == [".s.lock"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
