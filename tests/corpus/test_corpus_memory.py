"""Memory is bounded by what comes out, whatever goes in; what is packed is read whole or told."""

import bz2
import gzip
import io
import json
import lzma
import re
import tarfile
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmscale.config.corpus import CorpusConfig, CorpusSourceConfig
from lmscale.corpus.account import Account
from lmscale.corpus.build import build_corpus
from lmscale.corpus.documents import read_documents
from lmscale.corpus.inputs import find_inputs
from lmscale.corpus.readers import read_file
from lmscale.corpus.text_files import compile_separator, cut_records, read_pieces
from lmscale.errors import DataError
from lmscale.files.found import find_files

PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=0),
    "zst": zstandard.compress,
}
# A frame of five bytes that says it needs a window of 2 GiB, as `zstd --long=31` writes; and 4 GiB.
LONG, LONGER = (
    b"\x28\xb5\x2f\xfd\0" + bytes([(log - 10) << 3]) + (1 | 5 << 3).to_bytes(3, "little") + b"hello"
    for log in (31, 32)
)
SKIPPED = b"\x51\x2a\x4d\x18\x04\0\0\0skip"


def read(path, **settings):
    source = CorpusSourceConfig(inputs=(str(path),), **settings)
    account = Account("s", source)
    (file,) = find_inputs(CorpusConfig(sources={"s": source}))["s"]
    texts = ["".join(text) for _, text in read_file(file, account)]
    account.check()
    return texts


@pytest.mark.parametrize("ending", PACK)
def test_what_unpacks_to_much_is_unpacked_in_pieces(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(PACK[ending](bytes(40 << 20)))
    assert path.stat().st_size < 100_000
    sizes = [len(piece) for piece in read_pieces(*find_files(str(path)).files)]
    assert sum(sizes) == 40 << 20
    assert max(sizes) <= (32 << 20 if ending == "zst" else 1 << 20)


@pytest.mark.parametrize("ending", PACK)
def test_a_packed_tar_costs_no_more_than_its_texts(tmp_path, ending):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, size in (("a.bin", 40 << 20), ("b.txt", 4)):
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(b"text"[:size] + bytes(max(0, size - 4))))
    path = tmp_path / f"a.tar.{ending}"
    path.write_bytes(PACK[ending](buffer.getvalue()))
    del buffer
    tracemalloc.start()
    assert read(path) == ["text"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (80 << 20 if ending == "zst" else 8 << 20)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(PACK)), st.floats(0, 1, exclude_max=True))
def test_no_cut_of_a_packed_file_is_a_shorter_file(tmp_path_factory, ending, part):
    path = tmp_path_factory.mktemp("cut") / f"a.jsonl.{ending}"
    content = "".join(json.dumps({"text": str(n)}) + "\n" for n in range(50)).encode()
    packed = PACK[ending](content)
    path.write_bytes(packed[: int(len(packed) * part)])
    with pytest.raises(
        DataError, match=rf"a\.jsonl\.{ending}: cannot be unpacked as .*: it is cut"
    ):
        read(path)


@pytest.mark.parametrize("ending", PACK)
def test_all_streams_of_a_packed_file_are_read_and_what_is_none_is_told(tmp_path, ending):
    pack, path = PACK[ending], tmp_path / f"a.txt.{ending}"
    between = {"zst": SKIPPED, "gz": bytes(512), "xz": bytes(8)}.get(ending, b"")
    whole = pack(b"one ") + pack(b"") + between + pack(b"two")
    path.write_bytes(whole)
    assert read(path) == ["one two"]
    path.with_suffix("").write_bytes(whole)  # by what it is, whatever it is named
    assert read(path.with_suffix("")) == ["one two"]
    path.write_bytes(whole + b"junk behind it")
    with pytest.raises(DataError, match="cannot be unpacked as"):
        read(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match="cannot be unpacked as"):
        read(path)


def test_a_frame_of_zstd_with_a_long_window_is_read_and_a_longer_one_told(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(LONG)
    assert read(path) == ["hello"]
    path.write_bytes(LONGER)
    with pytest.raises(DataError, match="Frame requires too much memory") as caught:
        read(path)
    assert "damaged" not in str(caught.value)


@given(
    st.lists(st.text(alphabet="ab\n\r \f", max_size=12), max_size=6),
    st.sampled_from(["\n", "\f", "ab", "blank_lines", "\n\n"]),
    st.integers(1, 12),
)
@example(["\r", "\r ", "\r"], "blank_lines", 1)
def test_records_are_the_same_however_the_text_comes(pieces, separator, max_chars):
    pattern = compile_separator(separator) if separator != "\n" else re.compile("\n")
    whole = pattern.split("".join(pieces))
    expected = whole if whole[-1] else whole[:-1]
    found = list(cut_records(pieces, pattern, max_chars))
    assert found == [None if len(each) > max_chars else each for each in expected]


def peak_of_building(tmp_path, raw, **settings):
    source = {"inputs": [str(raw)], **settings}
    tree = {"folder": str(tmp_path / "c"), "sources": {"s": source}, "heldout_fraction": 0}
    config = CorpusConfig.model_validate(tree | {"max_chars": 500_000})
    tracemalloc.start()
    try:
        manifest = build_corpus(config, processes=1).built["s"].manifest
        return manifest, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("end", "times"), [("", 2), ("\U0001f600", 9)])
def test_a_long_line_is_in_memory_twice(tmp_path, end, times):
    """As JSON and as text, each of 4 bytes a character where one is beyond U+FFFF."""
    text = "some words of a line that is none too short\n" * 150_000 + end
    raw = tmp_path / "a.jsonl"
    raw.write_text(json.dumps({"text": text, "x": 1}, ensure_ascii=False) + "\n")
    manifest, peak = peak_of_building(tmp_path, raw)
    assert manifest.text_bytes("train") == len(text.encode())
    assert peak < (times + 0.6) * len(text)


def test_a_line_beyond_the_limit_is_broken_and_not_held(tmp_path):
    raw = tmp_path / "a.jsonl"
    raw.write_text(json.dumps({"text": "x" * 10_000_000}) + '\n{"text": "short"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: longer than .*s.max_record_chars = 100,000"):
        peak_of_building(tmp_path, raw, max_record_chars=100_000)
    settings = {"max_record_chars": 100_000, "max_bad_records": 1}
    manifest, peak = peak_of_building(tmp_path, raw, **settings)
    assert manifest.dropped == {"broken": 1} and manifest.documents("train") == 1
    assert peak < 8_000_000


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_that_is_one_document_is_never_whole_in_memory(tmp_path, name):
    raw = tmp_path / name
    text = "some words of a line\r\n" * 700_000 + "\U0001f600 e\u0301\n"
    raw.write_bytes(gzip.compress(text.encode(), 1) if name.endswith("gz") else text.encode())
    manifest, peak = peak_of_building(tmp_path, raw)
    expected = text.replace("\r\n", "\n").replace("e\u0301", "é")
    assert "".join(read_documents(tmp_path / "c/s/train")) == expected
    assert (manifest.documents_read, manifest.cut, manifest.line_ends) == (1, {"split": 1}, 1)
    assert peak < 28_000_000  # the whole takes 62 MB, of 4 bytes a character


def test_few_rows_are_read_at_once_where_a_few_bytes_may_repeat_a_long_one(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 40), pyarrow.array(["x" * 900_000])
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    monkeypatch.setattr("lmscale.corpus.readers.MAX_BATCH_BYTES", 2_000_000)
    before = pyarrow.total_allocated_bytes()
    held = []
    source = CorpusSourceConfig(inputs=(str(path),))
    (file,) = find_inputs(CorpusConfig(sources={"s": source}))["s"]
    for _, (text,) in read_file(file, Account("s", source)):
        held.append((len(text), pyarrow.total_allocated_bytes() - before))
    assert [size for size, _ in held] == [900_000] * 40
    assert max(size for _, size in held) < 8_000_000
