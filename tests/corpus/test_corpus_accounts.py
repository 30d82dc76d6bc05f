"""All that is read comes out, or is counted with its reason: per file, line and member of a tar."""

import gzip
import io
import json
import os
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.cli.corpus import _render
from lmscale.config.corpus import CorpusConfig, CorpusSourceConfig
from lmscale.corpus.account import Account
from lmscale.corpus.build import build_corpus
from lmscale.corpus.documents import read_documents
from lmscale.corpus.fields import RecordFields
from lmscale.corpus.inputs import find_inputs
from lmscale.corpus.readers import read_file
from lmscale.errors import DataError


def build(folder, *inputs, source=None, **changes):
    """The manifest and the texts of a corpus of these files."""
    sources = {"s": {"inputs": [os.fsdecode(path) for path in inputs], **(source or {})}}
    tree = {"folder": str(folder / "corpus"), "sources": sources, "heldout_fraction": 0}
    config = CorpusConfig.model_validate(tree | changes)
    manifest = build_corpus(config, processes=1).built["s"].manifest
    texts = [
        t for split in ("train", "heldout") for t in read_documents(folder / "corpus/s" / split)
    ]
    assert manifest.documents_read == len(texts) + sum(manifest.dropped.values())
    return manifest, texts


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_what_is_wrong_with_several_files_is_told_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    (tmp_path / "b.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "c.jsonl").write_text("{\n")
    (tmp_path / "d.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "e.jsonl").write_text('{"text": "e"}\n')
    with pytest.raises(DataError) as caught:
        build(tmp_path, tmp_path / "*.*")
    problems = [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]
    beginnings = ("b.tar: damaged", "d.jsonl.gz: ", "a.jsonl:2: no key", "c.jsonl:1: not JSON")
    beginnings += ("2 broken records; corpus.sources.s.max_bad_records = 0",)
    assert [p[: len(b)] for p, b in zip(problems, beginnings, strict=True)] == list(beginnings)
    assert not (tmp_path / "corpus/s").exists()


def test_members_whose_names_hold_dots_are_documents_each(tmp_path):
    members = [(f"0704.{number:04d}.txt", f"paper {number}".encode()) for number in range(1000)]
    manifest, texts = build(tmp_path, write_tar(tmp_path / "a.tar", members))
    assert texts == [content.decode() for _, content in members]
    assert manifest.passed_over == {}


NAMES = st.lists(st.sampled_from(["a", "b", "07", "0001"]), min_size=1, max_size=3).map(".".join)
MEMBERS = st.lists(
    st.tuples(NAMES, st.sampled_from(["txt", "json", "TXT", "jpg", "md"])), max_size=9
)


@settings(max_examples=25, deadline=None)
@given(MEMBERS)
def test_every_member_of_a_tar_is_given_or_counted(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("tar")
    members = [("x/always.txt", b"always")]
    for number, (name, ending) in enumerate(names):
        text = f"text {number}"
        content = json.dumps({"text": text}) if ending == "json" else text
        members.append((f"x/{name}.{ending}", content.encode()))
    manifest, texts = build(folder, write_tar(folder / "a.tar", members))
    assert manifest.documents_read + sum(manifest.passed_over.values()) == len(members)
    plain = {content.decode() for name, content in members if name.lower().endswith(".txt")}
    assert plain <= set(texts)
    if not any(ending == "json" for _, ending in names):
        assert len(texts) == len(plain)


def test_json_about_a_text_beside_it_is_counted_and_json_alone_is_a_document(tmp_path):
    meta, text = b'{"url": "x"}', b'{"text": "from json"}'
    members = [("1.json", meta), ("1.meta.json", meta), ("1.txt", b"one"), ("1.more.json", meta)]
    members += [("2.jpg", b""), ("3.json", text), ("4.en.txt", b"four"), ("4.json", meta)]
    members += [("./x/._1.txt", b"\0\x05\x16\x07Mac OS X")]
    manifest, texts = build(tmp_path, write_tar(tmp_path / "a.tar", members))
    assert texts == ["one", "from json", "four"]
    expected = {
        ".json beside a .txt": 4,
        "tar members of macOS (._NAME)": 1,
        "tar members other than .txt and .json": 1,
    }
    assert manifest.passed_over == expected
    assert "passed over: 4 .json beside a .txt, 1 tar members of macOS" in _render(manifest)


@pytest.mark.parametrize("cut", range(512, 7 * 512, 256))
def test_no_cut_of_a_tar_is_a_shorter_tar(tmp_path, cut):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.txt", b"%d" % n * 300) for n in range(3)])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.tar: damaged or no tar: "):
        build(tmp_path, path)


def test_a_damaged_header_and_a_second_tar_do_not_end_a_tar_silently(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.txt", b"%d" % n * 300) for n in range(3)])
    whole = path.read_bytes()
    path.write_bytes(whole[:1024] + b"\xff" * 100 + whole[1124:])
    with pytest.raises(DataError, match=r"damaged or no tar: .* at byte 1,024"):
        build(tmp_path, path)
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="something follows behind the tar's end"):
        build(tmp_path, path)


GOOD, BLANK = st.just(b'{"text": "t%d"}'), st.sampled_from([b"", b"  ", b"\r"])
BROKEN = st.sampled_from(
    [b"{", b"[]", b'{"text": 1}', b'{"text": "\xe9"}', b'{"x":"\xff","text":""}']
)
LINES = st.lists(st.one_of(GOOD, BLANK, BROKEN), max_size=20)


@settings(max_examples=25, deadline=None)
@given(LINES)
def test_every_line_is_given_or_counted_a_stray_byte_included(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("lines")
    lines = [line % number if b"%d" in line else line for number, line in enumerate(lines)]
    raw = folder / "a.jsonl"
    raw.write_bytes(b"\n".join([b'{"text": "always"}', *lines, b'{"text": "at last"}']))
    manifest, texts = build(folder, raw, source={"max_bad_records": 20})
    good = [line for line in lines if b'"t' in line and b'"text": "t' in line]
    blank = sum(not line.strip() for line in lines)
    assert len(texts) == len(good) + 2
    assert manifest.passed_over.get("blank lines", 0) == blank
    assert manifest.dropped.get("broken", 0) == len(lines) - len(good) - blank


def as_parquet(values):
    buffer = io.BytesIO()
    kind = pyarrow.string() if all(isinstance(v, str | None) for v in values) else None
    values = [v if kind or v is None else [str(v)] for v in values]
    table = pyarrow.table({"text": pyarrow.array(values, kind)})
    pyarrow.parquet.write_table(table, buffer, row_group_size=2)
    return buffer.getvalue()


def as_tar(values):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, value in enumerate(values):
            content = json.dumps({"text": value}).encode()
            member = tarfile.TarInfo(f"{number}.x.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


FORMATS = {
    "jsonl": lambda values: "\r\n".join(json.dumps({"text": v}) for v in values).encode(),
    "json": lambda values: json.dumps([{"text": v} for v in values]).encode("utf-8-sig"),
    "parquet": as_parquet,
    "tar": as_tar,
}
PACKED = {
    "": lambda content: content,
    ".gz": lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:]) + b"\0" * 7,
    ".zst": lambda content: zstandard.compress(content[:9]) + zstandard.compress(content[9:]),
}
VALUES = st.one_of(
    st.text(alphabet='a\n\r\0\ufeff \u2028"é你😀', max_size=9), st.none(), st.just(7)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, max_size=7), st.sampled_from([*FORMATS]), st.sampled_from([*PACKED]))
def test_every_record_of_every_format_is_given_as_it_is_or_counted(
    tmp_path_factory, values, form, packing
):
    packing = "" if form == "parquet" else packing
    path = tmp_path_factory.mktemp("records") / f"a.{form}{packing}".upper()
    path.write_bytes(PACKED[packing](FORMATS[form](values)))
    tree = {"inputs": [str(path)], "max_bad_records": 9}
    config = CorpusConfig.model_validate({"sources": {"s": tree}})
    (file,) = find_inputs(config)["s"]
    account = Account("s", config.sources["s"])
    texts = ["".join(pieces) for _, pieces in read_file(file, account)]
    good = [value for value in values if isinstance(value, str)]
    if form == "parquet" and not all(isinstance(v, str | None) for v in values):
        good = []  # a column of lists
    assert texts == good
    assert account.broken == len(values) - len(good) and not account.passed_over


KEYS = st.lists(st.sampled_from(["text", "te", "n", 'a"b']), max_size=4)


@settings(max_examples=60, deadline=None)
@given(KEYS, KEYS)
def test_a_key_that_comes_twice_is_broken_and_one_inside_of_it_is_none(outer, inner):
    nested = "{" + ", ".join(f"{json.dumps(key)}: 1" for key in inner) + "}"
    line = "{" + ", ".join(f"{json.dumps(key)}: {nested}" for key in [*outer, "meta"]) + "}"
    fields = RecordFields(CorpusSourceConfig.model_validate({"inputs": ["x"]}))
    assert fields.find_repeated(line) == ("text" if outer.count("text") > 1 else None)


def test_no_text_is_taken_for_another_of_its_record_without_a_word(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "text": "b"}\n{"text": "c"}\n')
    with pytest.raises(DataError, match="a.jsonl:1: the key 'text' comes twice, and only one"):
        build(tmp_path, tmp_path / "a.jsonl")


ENCODED = {
    "utf-16": ("héllo, wörld", "the file begins with the mark of utf-16"),
    "gb18030": ("你好，世界。这是一个中文的文件，", "it looks like gb18030"),
    "latin-1": ("é à ü ö, déjà vu", "it may be latin-1 or cp1252"),
    "utf-16-le": ("plain words in English", "as utf-16-le does"),
    "utf-16-be": ("plain words in English", "as utf-16-be does"),
}


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
@pytest.mark.parametrize("encoding", ENCODED)
def test_a_file_of_another_encoding_is_told_with_what_it_seems_to_be(tmp_path, encoding, packed):
    text, expected = ENCODED[encoding]
    (tmp_path / "a.txt").write_bytes(packed((text * 40).encode(encoding)))
    with pytest.raises(DataError) as caught:
        build(tmp_path, tmp_path / "a.txt")
    assert caught.value.problems[0].startswith(f"{tmp_path}/a.txt: not utf-8 (corpus.sources.s.")
    assert expected in caught.value.problems[0]
    _, texts = build(tmp_path, tmp_path / "a.txt", source={"encoding": encoding})
    assert texts == [text * 40]


def test_many_files_of_one_fault_are_one_line(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(b"x" * 99)[:-4])
        (tmp_path / f"{number}.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(DataError) as caught:
        build(tmp_path, tmp_path / "*")
    cut, keys, count = [p.replace(f"{tmp_path}/", "") for p in caught.value.problems]
    names = "0.jsonl.gz, 1.jsonl.gz, 2.jsonl.gz and 1 more"
    assert cut == f"{names}: cannot be unpacked as gzip: it is cut: its end is missing."
    assert keys.startswith("0.jsonl:1, 1.jsonl:1, 2.jsonl:1 and 1 more: no key 'text' (text_field)")
    assert keys.endswith("; the first: its keys are body.") and count.startswith("4 broken records")


def test_documents_whose_characters_the_normal_form_changes_are_counted(tmp_path):
    texts = ["e\u0301", "\uf900 is U+8C48 in NFC", "é", "plain"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    manifest, _ = build(tmp_path, tmp_path / "a.jsonl", drop_exact_duplicates=False)
    assert manifest.normalized == 2
    assert "NFC changed characters in 2 documents" in _render(manifest)
    manifest, same = build(tmp_path / "none", tmp_path / "a.jsonl", normalization="none")
    assert (manifest.normalized, same[0]) == (0, "e\u0301")


def test_one_stray_byte_is_a_bad_record_and_nobody_is_told_to_take_another_encoding(tmp_path):
    raw = tmp_path / "a.jsonl"
    raw.write_bytes('{"text": "café"}\n'.encode() * 3 + b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError) as caught:
        build(tmp_path, raw)
    assert "cp1252" not in str(caught.value)
    assert caught.value.problems[0] == (
        f"{raw}:4: not utf-8 (corpus.sources.s.encoding): after 13 characters comes the byte 0xE9."
    )
    manifest, texts = build(tmp_path, raw, source={"max_bad_records": 1})
    assert (texts, manifest.dropped) == (["café"], {"duplicate": 2, "broken": 1})


def test_files_that_gave_no_text_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "b.jsonl").write_text("\n\n")
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / "d.jsonl").write_text('{"text": "one"}\n')  # a duplicate is a text
    write_tar(tmp_path / "e.tar", [("1.md", b"x")])
    manifest, _ = build(tmp_path, *(tmp_path / f for f in os.listdir(tmp_path)))
    named = [str(tmp_path / name) for name in ("b.jsonl", "c.txt", "e.tar")]
    assert (manifest.files_read, manifest.files_without_text) == (5, 3)
    assert list(manifest.without_text) == named
    assert f"3 files gave no text: {', '.join(named)}" in _render(manifest)


def test_a_link_to_nothing_among_the_inputs_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "c.txt")
    with pytest.raises(DataError, match=r"no file: \S*b\.txt, \S*c\.txt: a link"):
        build(tmp_path, tmp_path / "*.txt")


def test_a_file_whose_name_is_not_utf8_is_read_and_told(tmp_path):
    name = b"caf\xe9 \x1b[31m.jsonl"
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
        file.write(b'{"text": "good"}\n{broken\n')
    with pytest.raises(DataError) as caught:
        build(tmp_path, tmp_path / "*.jsonl")
    assert r"caf\udce9 \x1b[31m.jsonl" in caught.value.problems[0]
    assert all(problem.isprintable() for problem in caught.value.problems)
    _, texts = build(tmp_path, tmp_path / "*.jsonl", source={"max_bad_records": 1})
    assert texts == ["good"]


def test_a_source_of_which_nothing_was_held_out_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    manifest, _ = build(tmp_path, tmp_path / "a.txt", heldout_fraction=0.02)
    assert "Nothing was held out: " in _render(manifest)
    assert "corpus.heldout_fraction = 0.02" in _render(manifest)


@pytest.mark.parametrize(
    ("separator", "content", "expected"),
    [
        ("", b"one\n\ntwo", ["one\n\ntwo"]),
        ("blank_lines", b"\n\none\nmore\r\n \t\r\n\r\ntwo\n\n", ["one\nmore", "two"]),
        ("\f", b"one\n\ftwo\f", ["one\n", "two"]),
        ("\n<|end|>\n", b"one\r\n<|end|>\r\ntwo\n<|end|>\n", ["one", "two"]),
    ],
)
def test_a_text_file_is_cut_at_its_separators(tmp_path, separator, content, expected):
    (tmp_path / "a.txt").write_bytes(content)
    _, texts = build(tmp_path, tmp_path / "a.txt", source={"separator": separator})
    assert texts == expected
