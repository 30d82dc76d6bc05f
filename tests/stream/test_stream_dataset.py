import json
import pickle
from collections import Counter

import numpy as np
import pytest

from lmscale.config.data import ShardCacheConfig, StreamConfig
from lmscale.errors import DataError
from lmscale.stream.dataset import open_dataset

PACKINGS = ("concat", "best_fit")


@pytest.fixture
def cache(tmp_path):
    return ShardCacheConfig(folder=str(tmp_path / "cache"), retries=0)


def settings_of(cache, *, sequence_length=32, packing="concat", **more):
    return StreamConfig.model_validate(
        {"sequence_length": sequence_length, "packing": packing, "cache": cache, **more}
    )


def number_tokens(lengths):
    """Documents whose tokens are 10, 11, 12, …:

    every token of the dataset has a number of its own.
    """
    ends = np.cumsum(lengths) + 10
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def targets_of(window):
    begins = set(window.starts.tolist())
    return [int(window.tokens[p]) for p in range(window.length) if p not in begins]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("sequence_length", [5, 16, 400])
def test_every_token_of_every_document_is_a_target_once_unless_it_is_a_first(
    tmp_path, write_dataset, windows_of, cache, packing, sequence_length
):
    lengths = np.random.default_rng(4).integers(1, 50, 90)
    texts = number_tokens(lengths)
    folder = write_dataset(tmp_path / "d", texts, shard_documents=25, dtype="uint32")
    # Not looked at: no vocabulary has so many tokens, and no document ends.
    loose = {"sequence_length": sequence_length, "packing": packing, "verify_hashes": False}
    dataset = open_dataset(folder, settings_of(cache, **loose))
    windows = windows_of(dataset.read(range(dataset.num_windows)))
    targets = Counter(token for window in windows for token in targets_of(window))
    assert targets == Counter(int(token) for text in texts for token in text[1:])
    seen = {int(token) for window in windows for token in window.tokens[: window.length]}
    if packing == "best_fit":  # concat may leave a shard's last token out, if it is a first
        assert seen == {int(token) for text in texts for token in text}
    for window in windows:
        assert window.tokens.shape == (sequence_length + 1,)
        assert (window.tokens[window.length :] == 3).all()
        assert window.starts[0] == 0 and (np.diff(window.starts) > 0).all()


def test_concat_windows_are_the_shards_run_of_tokens(
    tmp_path, write_dataset, windows_of, cache, documents
):
    texts = documents(60, seed=7)
    folder = write_dataset(tmp_path / "d", texts, shard_documents=30)
    dataset = open_dataset(folder, settings_of(cache, sequence_length=20))
    index = 0
    for shard in (texts[:30], texts[30:]):
        flat = np.concatenate(shard)
        begins = np.cumsum([len(text) for text in shard]) - [len(text) for text in shard]
        for first in range(0, len(flat) - 1, 20):
            (window,) = windows_of(dataset.read([index]))
            expected = flat[first : first + 21]
            assert window.length == len(expected)
            assert window.tokens[: window.length].tolist() == expected.tolist()
            inside = begins[(begins > first) & (begins < first + 21)] - first
            assert window.starts.tolist() == [0, *inside.tolist()]
            index += 1
    assert index == dataset.num_windows


def test_the_window_counts_of_best_fit_are_kept_beside_the_manifest(data, cache, monkeypatch):
    first = open_dataset(data / "a", settings_of(cache, sequence_length=24, packing="best_fit"))
    kept = json.loads((data / "a" / "windows-best_fit-24.json").read_text())
    assert kept["counts"] == first.counts.tolist()

    def fail(*_):
        raise AssertionError("packed again")

    monkeypatch.setattr("lmscale.stream.dataset.Dataset.pack", fail)
    again = open_dataset(data / "a", settings_of(cache, sequence_length=24, packing="best_fit"))
    assert again.counts.tolist() == first.counts.tolist()


def test_a_dataset_crosses_to_another_process_without_its_open_shards(data, cache):
    dataset = open_dataset(data / "a", settings_of(cache))
    expected = dataset.read([50])
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.read([50]).tokens.tolist() == expected.tokens.tolist()


def test_all_missing_and_cut_shards_are_named_at_once(tmp_path, write_dataset, documents, cache):
    folder = write_dataset(tmp_path / "d", documents(120, seed=1))
    (folder / "x-000000.tar").unlink()
    cut = folder / "x-000002.tar"
    cut.write_bytes(cut.read_bytes()[:-512])
    with pytest.raises(DataError) as caught:
        open_dataset(folder, settings_of(cache))
    missing, cut_problem = caught.value.problems
    assert "x-000000.tar: the shard is missing" in missing
    assert "x-000002.tar: the shard is cut" in cut_problem


def test_only_the_rank_that_checks_looks_at_all_shards(tmp_path, write_dataset, documents, cache):
    folder = write_dataset(tmp_path / "d", documents(120, seed=1))
    (folder / "x-000002.tar").unlink()
    dataset = open_dataset(folder, settings_of(cache), check_files=False)
    assert dataset.read([0]).lengths == [33]
    with pytest.raises(DataError, match=r"x-000002.tar"):
        dataset.read([dataset.num_windows - 1])


def test_counts_that_were_written_once_serve_every_later_opening(
    tmp_path, write_dataset, documents, cache, monkeypatch
):
    folder, packed = write_dataset(tmp_path / "d", documents(120, seed=1)), []
    config = settings_of(cache, sequence_length=24, packing="best_fit")
    open_dataset(folder, config, advance=packed.append)
    assert len(packed) == 3
    monkeypatch.setattr("lmscale.stream.dataset.Dataset.pack", None)
    other_node = ShardCacheConfig(folder=str(tmp_path / "other"), retries=0)
    open_dataset(folder, settings_of(other_node, sequence_length=24, packing="best_fit"))


def test_a_flipped_byte_is_found_before_the_shard_is_used(
    tmp_path, write_dataset, documents, cache
):
    folder = write_dataset(tmp_path / "d", documents(20, seed=1))
    path = folder / "x-000000.tar"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    dataset = open_dataset(folder, settings_of(cache))
    with pytest.raises(DataError, match=r"x-000000.tar: its content has changed .* sha256"):
        dataset.read([0])
    unchecked = open_dataset(folder, settings_of(cache, verify_hashes=False))
    assert unchecked.read([0]).lengths == [33]


def test_a_shard_is_hashed_once_per_node_and_again_after_a_write(data, cache, monkeypatch):
    hashed = []
    monkeypatch.setattr("lmscale.stream.dataset.check_hash", lambda path, _: hashed.append(path))
    for _ in range(3):
        open_dataset(data / "b", settings_of(cache)).read([0])
    assert len(hashed) == 1
    path = data / "b" / "x-000000.tar"
    path.write_bytes(path.read_bytes())
    open_dataset(data / "b", settings_of(cache)).read([0])
    assert len(hashed) == 2


def test_an_empty_dataset_is_an_error(tmp_path, write_dataset, cache):
    no_shards = write_dataset(tmp_path / "none", [])
    only_ends = write_dataset(tmp_path / "ends", [np.array([2])], shard_documents=1)
    for folder in (no_shards, only_ends):
        with pytest.raises(DataError, match="the dataset is empty"):
            open_dataset(folder, settings_of(cache))


def test_a_folder_without_a_manifest_says_what_to_run(tmp_path, cache):
    with pytest.raises(DataError, match="there is no dataset here.*lmscale shards build"):
        open_dataset(tmp_path, settings_of(cache))
