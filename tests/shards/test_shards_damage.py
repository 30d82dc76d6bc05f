"""Damage to a dataset is found and named, most of it on opening a shard."""

import tarfile

import pytest
from shard_cases import rewrite, webdataset_leaks

from lmscale.errors import DataError
from lmscale.shards.manifest import load_manifest, parse_manifest, save_manifest
from lmscale.shards.reader import open_shard
from lmscale.shards.verify import find_datasets, verify_dataset


def problems_of(dataset, *, deep=True):
    return "\n".join(verify_dataset(dataset, deep=deep))


def test_a_sound_dataset_has_no_problems(dataset):
    assert verify_dataset(dataset) == []
    assert verify_dataset(dataset, deep=False) == []
    assert find_datasets(dataset.parent.parent) == [dataset.with_name("heldout"), dataset]


@webdataset_leaks
def test_a_tar_cut_between_members_is_found(dataset):
    import webdataset

    manifest = load_manifest(dataset)
    entry = manifest.shards[1]
    path = dataset / entry.name
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[3].offset
    rewrite(path, lambda content: bytes(content[:cut]) + bytes(1024))
    assert len(list(webdataset.WebDataset([str(path)], shardshuffle=False))) == 1  # no error there
    with pytest.raises(DataError, match=rf"{entry.name}: the shard is cut off"):
        open_shard(path, entry, manifest.dtype)
    assert f"{entry.name}: the shard is cut off" in problems_of(dataset, deep=False)


def test_a_flipped_byte_in_the_tokens_is_found_by_its_hash(dataset):
    entry = load_manifest(dataset).shards[1]
    shard = open_shard(dataset / entry.name, entry, "uint16")
    at = int(shard.index[0, 0]) + 101  # the high byte of a token
    rewrite(dataset / entry.name, lambda content: content[:at] + b"\xff" + content[at + 1 :])
    assert verify_dataset(dataset, deep=False) == []
    found = problems_of(dataset)
    assert f"{entry.name}: the shard is damaged: its sha256" in found
    assert "is outside the vocabulary of 1,000" in found


def test_a_flipped_bit_that_leaves_a_plausible_token_is_told_as_such(dataset):
    entry = load_manifest(dataset).shards[1]
    at = int(open_shard(dataset / entry.name, entry, "uint16").index[0, 0]) + 100  # a low byte

    def flip(content):
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    rewrite(dataset / entry.name, flip)
    assert "token ids and document ends look right, so the place is not known" in problems_of(
        dataset
    )


@pytest.mark.parametrize("where", ["magic", "name", "value"])
def test_a_flipped_byte_in_the_index_is_found_on_opening(dataset, where):
    entry = load_manifest(dataset).shards[0]
    path = dataset / entry.name
    at = entry.index_offset + {"name": 3, "magic": 513, "value": 512 + 128 + 1}[where]
    rewrite(path, lambda content: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    with pytest.raises(DataError, match=rf"{entry.name}: the shard.*index"):
        open_shard(path, entry, "uint16")
    assert entry.name in problems_of(dataset, deep=False)


def test_every_byte_of_the_index_is_checked(dataset):
    entry = load_manifest(dataset).shards[0]
    path = dataset / entry.name
    whole = path.read_bytes()
    start = entry.index_offset + 512 + 128
    for at in range(start, start + 32 * entry.blocks):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(DataError, match="index is damaged"):
            open_shard(path, entry, "uint16")


def test_a_missing_shard_and_a_stranger_are_named(dataset):
    entry = load_manifest(dataset).shards[2]
    (dataset / entry.name).rename(dataset / "stranger.tar")
    found = problems_of(dataset)
    assert f"{entry.name}: the shard is listed in the manifest and missing" in found
    assert "stranger.tar: is not in the manifest" in found


def test_shards_that_were_swapped_are_found(dataset):
    first, second = (dataset / entry.name for entry in load_manifest(dataset).shards[:2])
    swapped = (second.read_bytes(), first.read_bytes())
    first.write_bytes(swapped[0])
    second.write_bytes(swapped[1])
    assert len(verify_dataset(dataset)) == 2


def test_the_wrong_dtype_is_found_on_opening(dataset):
    entry = load_manifest(dataset).shards[0]
    with pytest.raises(DataError, match="index is damaged"):
        open_shard(dataset / entry.name, entry, "uint32")


def test_an_edited_or_foreign_manifest_is_refused(dataset, tmp_path):
    path = dataset / "manifest.json"
    rewrite(path, lambda content: content.replace(b'"eos_id": 2', b'"eos_id": 3'))
    assert "does not match its own fingerprint" in problems_of(dataset)
    for content in (b"{", b"[]", b'{"version": 1}', b"\xff"):
        with pytest.raises(DataError, match="m.json: not a manifest of shards"):
            parse_manifest(content, name="m.json")
    with pytest.raises(DataError, match="format version 7"):
        parse_manifest(b'{"version": 7}')
    with pytest.raises(DataError, match="no dataset here"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no dataset here or below"):
        find_datasets(tmp_path / "nowhere")


def test_a_manifest_read_back_is_equal_and_keeps_its_fingerprint(dataset, tmp_path):
    manifest = load_manifest(dataset)
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest
    assert load_manifest(tmp_path).fingerprint == manifest.fingerprint
