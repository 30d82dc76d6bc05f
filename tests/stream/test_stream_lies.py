"""Shards whose hashes fit and whose content lies: what ``verify`` refuses, the reader refuses."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmscale.config.data import StreamConfig
from lmscale.errors import DataError
from lmscale.files.arrays import npy_header, to_npy
from lmscale.files.reading import sha256_file
from lmscale.shards.manifest import (
    load_manifest,
    parse_manifest,
    render_manifest,
    save_manifest,
)
from lmscale.shards.reader import open_shard
from lmscale.shards.verify import verify_dataset
from lmscale.stream.dataset import open_dataset

MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ODD = st.sampled_from([-1, 0, 1, 2, 3, 7, 255, 899, 900, 65535, 2**31, 2**62, 2**63 - 1])


@pytest.fixture
def one_shard(data, tmp_path):
    """A dataset of one shard of several blocks, and what an attacker seals it with."""
    folder = tmp_path / "d"
    folder.mkdir()
    manifest = load_manifest(data / "a")
    entry = manifest.shards[0]
    shutil.copy(data / "a" / entry.name, folder)
    return folder, replace(manifest, shards=(entry,))


def seal(folder, manifest, content=None, **changes):
    """Write the shard and a manifest whose size and hash fit, and which says what else it likes."""
    entry = manifest.shards[0]
    path = folder / entry.name
    if content is not None:
        path.write_bytes(content)
    entry = replace(entry, bytes=path.stat().st_size, sha256=sha256_file(path))
    entry = replace(entry, **{k: v for k, v in changes.items() if hasattr(entry, k)})
    rest = {k: v for k, v in changes.items() if not hasattr(entry, k)}
    save_manifest(replace(manifest, shards=(entry,), **rest), folder)


def refusals(folder, packing):
    """What ``verify`` finds, and what the stream says that reads every window."""
    cache = {"folder": str(folder.parent / "cache"), "retries": 0}
    config = {"sequence_length": 32, "packing": packing, "cache": cache}
    try:
        dataset = open_dataset(folder, StreamConfig.model_validate(config))
        rows = dataset.read(range(dataset.num_windows))
        assert rows.tokens.max() < dataset.manifest.vocab_size
        told = None
    except DataError as error:
        told = str(error)
    return verify_dataset(folder), told


def both_refuse(folder, packing="concat"):
    found, told = refusals(folder, packing)
    assert bool(found) == bool(told), (found, told)
    if told:
        name = "manifest.json" if "manifest.json" in found[0] else "x-000000.tar"
        assert name in told and name in found[0]
    return bool(told)


def put(content, at, values):
    piece = np.asarray(values).tobytes()
    return content[:at] + piece + content[at + len(piece) :]


def test_what_is_sealed_and_says_the_truth_is_taken(one_shard):
    seal(*one_shard)
    assert not both_refuse(one_shard[0]) and not both_refuse(one_shard[0], "best_fit")


@MANY
@given(data=st.data(), packing=st.sampled_from(["concat", "best_fit"]))
def test_no_number_of_a_shard_is_taken_that_verify_refuses(one_shard, data, packing):
    """One number of the index, of the documents' offsets or of the tokens is another one."""
    folder, manifest = one_shard
    entry = manifest.shards[0]
    whole = (folder / entry.name).read_bytes()
    shard = open_shard(folder / entry.name, entry, "uint16")
    block = data.draw(st.integers(0, entry.blocks - 1))
    value = data.draw(ODD)
    tokens_at, num_tokens, docs_at, num_documents = shard.index[block].tolist()
    kind = data.draw(st.sampled_from(["index", "docs", "tokens"]))
    if kind == "index":
        at = entry.index_offset + 512 + 128 + 32 * block + 8 * data.draw(st.integers(0, 3))
        lie = put(whole, at, np.int64(value))
    elif kind == "docs":
        lie = put(whole, docs_at + 8 * data.draw(st.integers(0, num_documents)), np.int64(value))
    else:
        at = tokens_at + 2 * data.draw(st.integers(0, num_tokens - 1))
        lie = put(whole, at, np.uint16(value % 2**16))
    seal(folder, manifest, lie)
    try:
        both_refuse(folder, packing)
    finally:
        (folder / entry.name).write_bytes(whole)


@MANY
@given(data=st.data())
def test_no_byte_of_a_shards_headers_and_descriptions_is_taken_that_verify_refuses(one_shard, data):
    folder, manifest = one_shard
    entry = manifest.shards[0]
    whole = (folder / entry.name).read_bytes()
    with tarfile.open(folder / entry.name) as tar:
        members = tar.getmembers()
    member = data.draw(st.sampled_from(members))
    begin = member.offset
    end = member.offset_data + (128 if member.name.endswith(".npy") else member.size)
    at = data.draw(st.integers(begin, end - 1))
    lie = bytearray(put(whole, at, bytearray(data.draw(st.binary(min_size=1, max_size=8)))))
    if data.draw(st.booleans()):  # a header whose checksum fits: a liar would see to it
        header = lie[begin : begin + 512]
        header[148:156] = b" " * 8
        lie[begin + 148 : begin + 156] = b"%06o\0 " % sum(header)
    seal(folder, manifest, bytes(lie[: len(whole)]))
    try:
        both_refuse(folder)
    finally:
        (folder / entry.name).write_bytes(whole)


@pytest.mark.parametrize(
    "change",
    [
        *({"pad_id": 65_536}, {"pad_id": 900}, {"eos_id": 900}, {"eos_id": 4}, {"vocab_size": 0}),
        *({"vocab_size": 65_537}, {"vocab_size": 5}, {"dtype": "uint32"}, {"index_offset": 2**62}),
        *({"tokens": 2**62}, {"documents": 2**62}, {"blocks": 2**62}, {"bytes": 2**62}),
        *({"blocks": 0}, {"documents": 0}, {"tokens": 0}, {"text_bytes": 2**62}, {"text_bytes": 1}),
        *({"tokenizer_fingerprint": "0"}, {"tokens": 99, "documents": 1, "blocks": 1}),
        *({"bos_id": 4}, {"bos_id": 900}),
    ],
    ids=str,
)
def test_no_manifest_is_taken_that_says_what_its_shards_cannot_be(one_shard, change):
    seal(*one_shard, **change)
    assert both_refuse(one_shard[0])


def test_a_member_of_a_size_below_zero_is_refused_and_not_read_for_ever(one_shard):
    folder, manifest = one_shard
    entry = manifest.shards[0]
    content = bytearray((folder / entry.name).read_bytes())
    begin = entry.index_offset
    header = tarfile.TarInfo("__index__/blocks.npy")
    evil = bytearray(header.tobuf(tarfile.USTAR_FORMAT))
    evil[124:136] = b"\xff" + (2**88 - 4096).to_bytes(11, "big")  # -4096, as GNU writes it
    evil[148:156] = b" " * 8
    evil[148:156] = b"%06o\0 " % sum(evil)
    content[begin : begin + 512] = evil
    seal(folder, manifest, bytes(content))
    assert both_refuse(folder)


def test_the_header_of_an_array_is_the_one_that_numpy_writes():
    for array in (
        *(np.zeros(n, "<u2") for n in (0, 1, 7, 10**6)),
        *(np.zeros((n, 4), "<i8") for n in (0, 1, 12345)),
        np.zeros((3, 5), "<i8"),
        np.zeros(9, "<u4"),
    ):
        assert to_npy(array)[:128] == npy_header(array.dtype, array.shape)
        assert np.load(io.BytesIO(to_npy(array))).shape == array.shape


def test_a_manifest_is_read_in_few_steps_a_shard(one_shard):
    """100,000 shards took 19 s on every rank: each was copied again to be hashed."""
    _, manifest = one_shard
    shards = tuple(replace(manifest.shards[0], name=f"x-{n:06d}.tar") for n in range(2000))
    content = json.dumps(render_manifest(replace(manifest, shards=shards))).encode()
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        parse_manifest(content)
    finally:
        sys.setprofile(None)
    assert calls / len(shards) < 15
