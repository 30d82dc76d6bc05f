import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmscale.config.data import WindowShape
from lmscale.errors import CheckpointError, ConfigError, DataError
from lmscale.objective.causal import CausalPreparation
from lmscale.stream.stream import StreamState, open_stream


def content(stream, first_n, count):
    rows = stream.read_rows(first_n, count)
    return rows.tokens.tolist(), rows.digests.tolist(), rows.lengths.tolist()


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_sample_is_the_same_wherever_reading_begins(stream_config, packing):
    config = stream_config(a=3, b=1, packing=packing)
    whole = content(open_stream(config, seed=1), 0, 400)
    for first, count in ((0, 1), (63, 2), (130, 100), (399, 1)):
        part = content(open_stream(config, seed=1), first, count)
        assert part == tuple(column[first : first + count] for column in whole)


def test_the_order_of_sources_in_the_yaml_does_not_change_a_sample(stream_config):
    one = open_stream(stream_config(a=3, b=1), seed=1)
    other = open_stream(stream_config(b=1, a=3), seed=1)
    assert content(one, 0, 200) == content(other, 0, 200)
    assert one.state_at(200) == other.state_at(200)


def test_another_seed_and_another_epoch_are_another_order(stream_config):
    stream = open_stream(stream_config(a=1), seed=1)
    total = stream.orders["a"].total
    first, second = content(stream, 0, total)[0], content(stream, total, total)[0]
    assert first != second
    assert sorted(first) == sorted(second)
    assert content(open_stream(stream_config(a=1), seed=2), 0, total)[0] != first


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_dataset_of_one_window_is_an_endless_stream(stream_config, windows_of, packing):
    stream = open_stream(stream_config(tiny=1, packing=packing), seed=1)
    windows = windows_of(stream.read_rows(10**9, 100))
    assert {tuple(window.tokens[:4].tolist()) for window in windows} == {(5, 6, 7, 2)}
    assert {window.length for window in windows} == {4}
    assert [window.starts.tolist() for window in windows] == [[0]] * 100


def test_a_dataset_smaller_than_a_block_mixes_with_a_large_one(stream_config):
    config = stream_config(a=1, tiny=3, settings={"window_shards": 50})
    lengths = open_stream(config, seed=1).read_rows(0, 64).lengths
    assert (lengths == 4).sum() >= 48


def test_rows_read_at_once_are_the_rows_read_alone(stream_config, windows_of):
    stream = open_stream(stream_config(a=3, b=1, packing="best_fit"), seed=1)
    rows = stream.read_rows(10, 50)
    for number, window in enumerate(windows_of(rows)):
        (alone,) = windows_of(stream.read_rows(10 + number, 1))
        assert window.tokens.tolist() == alone.tokens.tolist()
        assert window.starts.tolist() == alone.starts.tolist()
    prepared = CausalPreparation(mask_documents=True).prepare(rows)
    assert prepared.targets == rows.lengths.sum() - len(rows.starts)


def test_without_document_masks_only_padding_and_firsts_do_not_count(stream_config):
    stream = open_stream(stream_config(a=1, settings={"mask_documents": False}), seed=1)
    rows = stream.read_rows(0, 50)
    prepared = CausalPreparation(mask_documents=False).prepare(rows)
    assert prepared.targets == rows.lengths.sum() - 50


# The fixtures only build values; nothing in them changes between examples.
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 150),
            st.dictionaries(st.sampled_from("ab"), st.sampled_from([1, 3]), min_size=1),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_over_any_changes_of_the_mixture_each_source_is_read_in_its_own_order(
    stream_config, changes
):
    own = {
        name: content(open_stream(stream_config(**{name: 1}), seed=1), 0, 600)[0] for name in "ab"
    }
    state, read = None, []
    for length, weights in changes:
        stream = open_stream(stream_config(**weights), seed=1, state=state)
        n = state.n if state else 0
        read += content(stream, n, length)[0]
        state = StreamState.from_json(json.loads(json.dumps(stream.state_at(n + length).to_json())))
    assert state is not None
    counts = {name: 0 for name in "ab"}
    by_content = {name: Counter(map(tuple, own[name])) for name in "ab"}
    for tokens in read:
        name = "a" if tuple(tokens) in by_content["a"] else "b"
        assert tokens == own[name][counts[name]]
        counts[name] += 1


def test_the_state_is_small_and_survives_json(stream_config):
    stream = open_stream(stream_config(a=3, b=1), seed=1)
    later = open_stream(stream_config(a=1, b=1), seed=1, state=stream.state_at(10**9))
    state = later.state_at(2 * 10**9)
    assert len(state.segments) == 2
    assert len(json.dumps(state.to_json())) < 1000
    assert StreamState.from_json(json.loads(json.dumps(state.to_json()))) == state
    with pytest.raises(CheckpointError, match="The stream's state cannot be read"):
        StreamState.from_json({"version": 1})


def test_everything_a_run_cannot_change_is_reported_at_once(stream_config):
    state = open_stream(stream_config(a=1), seed=1).state_at(5)
    changed = {"sequence_length": 16, "window_shards": 3, "mixture_block": 32}
    config = stream_config(a=1, packing="best_fit", settings=changed | {"mask_documents": False})
    with pytest.raises(ConfigError) as caught:
        open_stream(config, seed=2, state=state)
    text = str(caught.value)
    for setting in (*changed, "packing", "mask_documents"):
        assert f"stream.{setting} = " in text
    assert "run.seed = 2, but the run began with 1" in text
    assert len(caught.value.problems) == 6


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_windows_without_an_overlap_hold_every_token_once(stream_config, packing):
    config = stream_config(a=1, packing=packing)
    with open_stream(config, seed=1, shape=WindowShape(stride=32, overlap=0)) as stream:
        rows = stream.read_rows(0, stream.orders["a"].total)
    assert rows.tokens.shape[1] == 32
    manifest = stream.datasets["a"].manifest
    assert rows.lengths.sum() == sum(entry.tokens for entry in manifest.shards)


def test_a_state_of_before_there_were_shapes_is_of_next_token_windows(stream_config):
    config = stream_config(a=1)
    with open_stream(config, seed=1) as stream:
        state = stream.state_at(5)
    assert (state.geometry["stride"], state.geometry["overlap"]) == (32, 1)
    older = replace(
        state, geometry={k: v for k, v in state.geometry.items() if k not in ("stride", "overlap")}
    )
    with open_stream(config, seed=1, state=older) as resumed:
        assert resumed.shape.tokens == 33
    shape = WindowShape(stride=32, overlap=0)
    with pytest.raises(ConfigError, match="the overlap of the objective's windows = 0, but the"):
        open_stream(config, seed=1, state=older, shape=shape)


def test_data_that_changed_under_its_name_is_refused(
    stream_config, tmp_path, write_dataset, documents
):
    write_dataset(tmp_path / "a", documents(50, seed=1))
    state = open_stream(stream_config(folder=tmp_path, a=1), seed=1).state_at(5)
    write_dataset(tmp_path / "a", documents(50, seed=9))
    with pytest.raises(DataError, match=r"sources.a: .* is not the one that the run has read"):
        open_stream(stream_config(folder=tmp_path, a=1), seed=1, state=state)


def test_the_problems_of_all_sources_are_reported_at_once(
    stream_config, tmp_path, write_dataset, documents
):
    folder = write_dataset(tmp_path / "a", documents(50, seed=1))
    (folder / "x-000001.tar").unlink()
    with pytest.raises(DataError) as caught:
        open_stream(stream_config(folder=tmp_path, a=1, b=1), seed=1)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "stream.sources.a",
        "stream.sources.b",
    ]


def test_shards_of_another_tokenizer_are_refused(stream_config, tmp_path, write_dataset, documents):
    write_dataset(tmp_path / "a", documents(50, seed=1))
    write_dataset(tmp_path / "b", documents(50, seed=1), tokenizer="0" * 64)
    with pytest.raises(DataError, match=r"sources.b: its shards were made with another tokenizer"):
        open_stream(stream_config(folder=tmp_path, a=1, b=1), seed=1)
    with pytest.raises(DataError) as caught:
        open_stream(stream_config(folder=tmp_path, a=1), seed=1, tokenizer_fingerprint="1" * 64)
    assert "than tokenizer.folder holds (1111111111111111)" in str(caught.value)


def test_sources_whose_documents_begin_otherwise_are_refused(
    stream_config, tmp_path, write_dataset, documents
):
    write_dataset(tmp_path / "a", [np.append(1, ids) for ids in documents(50, seed=1)], bos_id=1)
    write_dataset(tmp_path / "b", documents(50, seed=1))
    with pytest.raises(DataError, match=r"sources.b: .* bos = None, .* a with 1.*bos: true"):
        open_stream(stream_config(folder=tmp_path, a=1, b=1), seed=1)
    with open_stream(stream_config(folder=tmp_path, b=1), seed=1) as stream:
        state = stream.state_at(3)
    older = {key: value for key, value in state.geometry.items() if key != "bos_id"}
    for read in (state, replace(state, geometry=older)):
        with pytest.raises(DataError, match=r"sources.a: .* = 1, .* run has read with None.*false"):
            open_stream(stream_config(folder=tmp_path, a=1), seed=1, state=read)
        open_stream(stream_config(folder=tmp_path, b=1), seed=1, state=read).close()


def test_no_sources_is_an_error(stream_config):
    with pytest.raises(ConfigError, match="stream.sources is empty"):
        open_stream(stream_config(), seed=1)


def test_large_vocabularies_come_as_uint32(stream_config, tmp_path, write_dataset):
    write_dataset(tmp_path / "a", [np.array([70_000, 5, 2])], dtype="uint32")
    rows = open_stream(stream_config(folder=tmp_path, a=1), seed=1).read_rows(0, 1)
    assert rows.tokens.dtype == np.uint32
    assert rows.tokens[0, 0] == 70_000
