"""Arrays by name: what a preparation declares is what travels, from the worker to its rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from lmscale.config.data import plan_batches
from lmscale.errors import ConfigError
from lmscale.stream import shard_windows
from lmscale.stream.batches import TOKENS, Field, Layout, Prepared, Rows, split_rows
from lmscale.stream.loader import open_loader
from lmscale.stream.stream import open_stream
from lmscale.stream.worker import LoaderJob


@dataclass(frozen=True)
class Pairs:
    """Five arrays of as many kinds; nothing of them is a causal objective's."""

    fields: tuple[Field, ...] = (
        Field("ids", TOKENS, ("B", "W")),
        Field("noise", "float32", ("B", "T")),
        Field("classes", "int64", ("B",)),
        Field("halves", "int32", ("B", 2)),
        Field("chosen", "int32", ("N",)),
    )

    def prepare(self, rows: Rows) -> Prepared:
        noise = np.stack([np.random.default_rng(int(n)).random(32) for n in rows.numbers])
        chosen = np.flatnonzero(rows.tokens % 7 == 0).astype(np.int32)
        arrays = {
            "ids": rows.tokens[:, ::-1],
            "noise": noise.astype(np.float32),
            "classes": rows.numbers % 3,
            "halves": np.stack([rows.lengths // 2, rows.lengths - rows.lengths // 2], axis=1),
            "chosen": chosen,
        }
        return Prepared(arrays, targets=len(chosen))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays["ids"].reshape(-1)[arrays["chosen"]]


@dataclass(frozen=True)
class Wrong(Pairs):
    """Does not keep to its fields."""

    change: str = ""

    def prepare(self, rows: Rows) -> Prepared:
        arrays, targets, _ = super().prepare(rows)
        arrays = dict(arrays)
        if self.change == "dtype":
            arrays["classes"] = arrays["classes"].astype(np.int32)
        elif self.change == "shape":
            arrays["noise"] = arrays["noise"][:, 1:]
        else:
            arrays["more"] = arrays["classes"]
        return Prepared(arrays, targets)


@pytest.fixture
def stream(stream_config):
    with open_stream(stream_config(a=3, b=1), seed=1) as opened:
        yield opened


def load(stream, preparation, *, world_size=1, workers=0):
    """Every micro-batch of three steps, by rank."""
    plan = plan_batches(global_windows=16, micro_windows=4, data_ranks=world_size)
    batches = []
    for rank in range(world_size):
        job = LoaderJob(
            stream=stream,
            preparation=preparation,
            plan=plan,
            data_rank=rank,
            first_n=5,
            num_steps=3,
        )
        with open_loader(job, workers=workers) as loader:
            batches += [batch for step in loader for batch in step.micro_batches]
    return sorted(batches, key=lambda batch: batch.first_n)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 1), (4, 0)])
def test_any_declared_arrays_are_the_same_on_all_ranks_and_workers(stream, world_size, workers):
    expected = load(stream, Pairs())
    others = load(stream, Pairs(), world_size=world_size, workers=workers)
    assert len(expected) == len(others) == 12
    for one, two in zip(expected, others, strict=True):
        assert (one.first_n, one.digest, one.targets) == (two.first_n, two.digest, two.targets)
        assert one.arrays.keys() == two.arrays.keys()
        for name, array in one.arrays.items():
            assert array.dtype == two.arrays[name].dtype
            assert np.array_equal(array, two.arrays[name])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dtype", r"classes is int32 \(4,\), but was declared as int64"),
        ("shape", r"noise is float32 \(4, 31\), but was declared as float32 \('B', 'T'\)"),
        ("more", r"prepared \[.*'more'.*\], but declared \["),
    ],
)
def test_a_preparation_that_does_not_keep_to_its_fields_is_told(stream, change, message, workers):
    with pytest.raises(ValueError, match=message):
        load(stream, Wrong(change=change), workers=workers)


def test_rows_that_are_cut_are_the_rows_that_are_read(stream):
    for number, part in enumerate(split_rows(stream.read_rows(3, 10), 4)):
        first, count = 3 + 4 * number, 4 if number < 2 else 2
        alone = stream.read_rows(first, count)
        for name in ("numbers", "tokens", "lengths", "starts", "digests"):
            assert np.array_equal(getattr(part, name), getattr(alone, name)), name


def test_a_share_of_a_step_with_more_positions_than_int32_has_is_split_as_any_other():
    wide = 2**30
    heads = np.arange(5) * wide
    rows = Rows(
        numbers=np.arange(5),
        tokens=np.broadcast_to(np.uint16(7), (5, wide)),  # of no memory
        lengths=np.full(5, 9, dtype=np.int32),
        starts=np.sort(np.concatenate([heads, heads + 4])),
        digests=np.zeros(5, dtype=np.uint64),
    )
    for part in split_rows(rows, 1):
        assert part.starts.tolist() == [0, 4] and part.starts.dtype == np.int32


def test_starts_are_counted_in_int64_where_there_are_too_many_positions(stream_config, monkeypatch):
    with open_stream(stream_config(a=1), seed=1) as stream:
        expected = stream.read_rows(0, 12)
        monkeypatch.setattr(shard_windows, "MAX_POSITIONS", 11 * 33)
        found = stream.read_rows(0, 12)
    assert (expected.starts.dtype, found.starts.dtype) == (np.int32, np.int64)
    assert found.starts.tolist() == expected.starts.tolist()


def test_a_forward_pass_of_more_positions_than_can_be_counted_is_refused():
    kept = {"rows": 2**20, "token_dtype": np.dtype("uint16")}
    Layout((), sequence_length=2**11 - 2, row_tokens=2**11 - 1, **kept)
    with pytest.raises(ConfigError, match="batch.micro_windows: 1,048,576 windows"):
        Layout((), sequence_length=2**11 - 1, row_tokens=2**11, **kept)
