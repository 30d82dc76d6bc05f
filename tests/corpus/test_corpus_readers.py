"""Every raw format gives its texts, and damage in a file is named with its place."""

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lmscale.config.corpus import CorpusConfig, CorpusSourceConfig
from lmscale.corpus.account import Account
from lmscale.corpus.inputs import find_inputs
from lmscale.corpus.readers import read_file
from lmscale.errors import DataError

TEXTS = ["Hello, world.", "你好，世界。\n第二行。", 'quotes " and \u2028 separators \U0001f600']


def read(*patterns, **settings):
    source = CorpusSourceConfig(inputs=tuple(map(str, patterns)), **settings)
    files = find_inputs(CorpusConfig(sources={"s": source}))["s"]
    account = Account("s", source)
    texts = ["".join(text) for file in files for _, text in read_file(file, account)]
    account.check()
    return texts


def jsonl(texts=TEXTS, key="text"):
    return "".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts).encode()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_a_text_file_is_one_document_without_its_byte_order_mark(tmp_path):
    (tmp_path / "b.txt").write_bytes("\ufeffsecond\r\n".encode())
    (tmp_path / "a.txt").write_bytes("first \ufeff".encode())
    assert read(tmp_path / "*.txt") == ["first \ufeff", "second\r\n"]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_json_lines_give_their_texts_plain_or_packed(tmp_path, ending):
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[ending]
    # Two members or frames in one file, as parallel packers make them, and a blank line between.
    content = pack(jsonl(TEXTS[:1])) + pack(b"\n" + jsonl(TEXTS[1:]).rstrip(b"\n"))
    (tmp_path / f"a.{ending}").write_bytes(content)
    assert read(tmp_path / f"a.{ending}") == TEXTS


def test_json_lines_in_another_encoding_are_read_when_it_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl().decode().encode("gb18030"))
    assert read(tmp_path / "a.jsonl", encoding="gb18030") == TEXTS


def test_a_parquet_column_gives_its_texts(tmp_path):
    table = pyarrow.table({"content": TEXTS, "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_field="content") == TEXTS
    with pytest.raises(DataError, match=r"no column 'text'; its columns: content, other"):
        read(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(jsonl())
    with pytest.raises(DataError, match=r"for these files alone {files: PATTERN, text_field: NAM"):
        read(tmp_path / "a.parquet", tmp_path / "b.jsonl")
    twice = pyarrow.Table.from_arrays([pyarrow.array(TEXTS)] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: several columns are named 'text'\. Write"):
        read(tmp_path / "a.parquet")


def test_a_foreign_webdataset_gives_its_txt_and_json_members(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "x/000.jpg", b"\xff\xd8")
        add(tar, "x/000.txt", TEXTS[0].encode())
        add(tar, "x/001.json", json.dumps({"text": TEXTS[1]}).encode())
        add(tar, "x/002.json", json.dumps({"text": "not this"}).encode())
        add(tar, "x/002.txt", TEXTS[2].encode())
    assert read(tmp_path / "a.tar") == TEXTS


def test_broken_json_lines_are_named_all_at_once(tmp_path):
    lines = [b'{"text": "good"}', b"{broken", b"[1]", b'{"body": "x"}', b'{"text": 7}']
    lines.append(b'{"text": "\\ud800"}')
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as caught:
        read(path, max_bad_records=4)
    problems = caught.value.problems
    assert [problem.split(": ")[0] for problem in problems[:-1]] == [
        f"{path}:{number}" for number in (2, 3, 4, 5, 6)
    ]
    assert "no key 'text' (text_field): its keys are body." in problems[2]
    assert "5 broken records" in problems[-1]
    assert "corpus.sources.s.max_bad_records = 4" in problems[-1]
    assert read(path, max_bad_records=5) == ["good"]


def test_reading_stops_soon_after_too_many_broken_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{broken\n" * 100_000)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl")
    assert len(caught.value.problems) == 2
    assert "5 broken records, and reading stopped there" in caught.value.problems[-1]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz"])
def test_a_wrong_encoding_is_named_with_its_byte_and_the_setting(tmp_path, name):
    start = b'{"text": "' if "json" in name else b""
    content = start + b"x" * 2_000_000 + "é".encode("latin-1") + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert f"after {2_000_000 + len(start):,} characters comes the byte 0xE9" in str(caught.value)
    assert "corpus.sources.s.encoding" in str(caught.value)


def test_a_byte_sequence_cut_at_the_end_of_a_file_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes("ok 世".encode()[:-1])
    with pytest.raises(DataError, match=r"after 3 characters comes the byte 0xE4"):
        read(tmp_path / "a.txt")


def test_an_encoding_that_cannot_be_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"xy")
    for encoding in ("utf-9", "hex", "utf-16", "idna", "undefined", "utf-8\0"):
        with pytest.raises(DataError, match=rf"a\.txt: .*encoding = {re.escape(repr(encoding))}: "):
            read(tmp_path / "a.txt", encoding=encoding)


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "parquet", "tar"])
def test_a_cut_file_is_named(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    texts = [str(number) * 50 for number in range(500)]
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    elif ending == "tar":
        with tarfile.open(path, "w") as tar:
            add(tar, "a.txt", b"x" * 5000)
    else:
        pack = gzip.compress if ending == "jsonl.gz" else zstandard.compress
        path.write_bytes(pack(jsonl(texts)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    with pytest.raises(DataError, match=f"a.{ending}: "):
        read(path)


def test_all_missing_inputs_are_reported_together(tmp_path):
    (tmp_path / "a.doc").write_bytes(b"x")
    sources = {
        "one": CorpusSourceConfig(inputs=(f"{tmp_path}/*.txt", f"{tmp_path}/a.doc")),
        "two": CorpusSourceConfig(inputs=(str(tmp_path),)),
    }
    with pytest.raises(DataError) as caught:
        find_inputs(CorpusConfig(sources=sources))
    one, two, three = caught.value.problems
    assert one.startswith("corpus.sources.one.inputs: no file matches")
    assert "a.doc: unknown ending" in two
    assert "is a folder" in three


@pytest.mark.parametrize(
    ("package", "ending"), [("pyarrow", "parquet"), ("zstandard", "jsonl.zst"), ("bs4", "html")]
)
def test_a_missing_extra_names_the_pip_command(tmp_path, package, ending):
    (tmp_path / f"a.{ending}").write_bytes(b"<p>x</p>")
    form = "text" if ending == "html" else "auto"
    program = f"""
import sys
sys.modules[{package!r}] = None
from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus
source = {{"inputs": [{str(tmp_path / f"a.{ending}")!r}], "format": {form!r}}}
config = {{"folder": {str(tmp_path / "out")!r}, "sources": {{"s": source}}, "strip_html": True}}
try:
    build_corpus(CorpusConfig.model_validate(config))
except Exception as error:
    print(type(error).__name__, error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.startswith("DataError"), result.stderr
    assert "pip install -e '.[corpus]' -c constraints.txt" in result.stdout
