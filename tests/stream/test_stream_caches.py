"""What is kept of shards is believed only with its hash, and by an audit not even then."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmscale.config import RunConfig
from lmscale.errors import DataError
from lmscale.files.arrays import to_npy
from lmscale.files.reading import seal, unseal
from lmscale.objective.causal import CausalPreparation
from lmscale.stream import dataset
from lmscale.stream.audit import audit_run
from lmscale.stream.batches import add_digests
from lmscale.stream.dataset import open_dataset
from lmscale.stream.ledger import LedgerRow, open_ledger
from lmscale.stream.stream import Stream, open_stream

PREPARATION = CausalPreparation(mask_documents=True)
COUNTS = "windows-best_fit-32.json"


@pytest.fixture
def own(data, tmp_path, stream_config):
    """A dataset of this test's own, packed by best fit, and what its cache holds."""
    shutil.copytree(data / "a", tmp_path / "a")
    (tmp_path / "a" / COUNTS).unlink(missing_ok=True)
    config = stream_config(folder=tmp_path, packing="best_fit", a=1)
    read_all(config)
    return config


def read_all(config) -> str:
    with open_stream(config, seed=1) as stream:
        rows = stream.read_rows(0, stream.orders["a"].total)
    return hashlib.sha256(rows.tokens.tobytes() + rows.starts.tobytes()).hexdigest()


def files_of(config, pattern):
    return sorted(Path(config.cache.folder).glob(pattern))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_bit_of_a_plan_or_of_counts_changes_a_sample(own, data):
    expected = read_all(own)
    kept = [*files_of(own, "*-pieces.npy"), Path(own.sources["a"].shards) / COUNTS]
    path = data.draw(st.sampled_from(kept))
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    assert read_all(own) == expected


def test_a_cached_copy_of_a_remote_shard_that_a_disk_has_changed_is_fetched_again(
    own,
):
    import fsspec

    store = fsspec.filesystem("memory")
    for path in Path(own.sources["a"].shards).iterdir():
        store.pipe_file(f"/changed/{path.name}", path.read_bytes())
    source = own.sources["a"].model_copy(update={"shards": "memory://changed"})
    remote = own.model_copy(update={"sources": {"a": source}})
    expected = read_all(remote)
    path = files_of(own, "*-x-000001.tar")[0]
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    assert read_all(remote) == expected
    assert path.read_bytes() != bytes(content)


def wrong_plan(config) -> None:
    """With the right hash, as a node writes it whose memory was wrong."""
    for path in files_of(config, "*-pieces.npy"):
        plan = np.load(path)
        plan[0] -= plan[0] > 0  # every piece a token earlier
        content = to_npy(plan)
        path.write_bytes(content + hashlib.sha256(content).digest())


@pytest.mark.parametrize(
    ("row", "value", "words"),
    [
        (0, -1, "outside of the shard's"),
        (0, 2**62, "outside of the shard's"),
        (1, 0, "outside of the shard's"),
        (1, 2**63 - 1, "outside of the shard's"),
        (1, 40, "a window has more than 33 tokens"),
        (2, 2**40, "do not ascend one by one from 0"),
        (2, 0, "do not ascend one by one from 0"),
    ],
)
def test_a_plan_that_is_none_of_its_shard_is_told_by_name_whatever_its_hash(own, row, value, words):
    path = files_of(own, "*-pieces.npy")[0]
    plan = np.load(path)
    plan[row, len(plan[row]) // 2] = value
    content = to_npy(plan)
    path.write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(DataError, match=f"{path.name}.*{words}.*Delete this file"):
        read_all(own)


def changed_shard(config) -> None:
    """Behind the back of the marker that vouches for it."""
    for path in Path(config.sources["a"].shards).glob("*.tar"):
        status = path.stat()
        content = bytearray(path.read_bytes())
        at = content.index(b"x-0000", 1500) - 40  # in the tokens before the next block
        content[at] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_run(folder: Path, stream: Stream) -> None:
    with open_ledger(folder, next_step=0, stream=stream, n=0) as ledger:
        for step in range(stream.orders["a"].total // 8):
            rows = stream.read_rows(8 * step, 8)
            targets = PREPARATION.prepare(rows).targets
            digest = add_digests(rows.digests.tolist())
            ledger.append(
                LedgerRow(step=step, first_n=8 * step, samples=8, tokens=targets, digest=digest)
            )


def test_an_audit_finds_what_a_wrong_plan_did_to_the_samples(own, tmp_path):
    """The run and its cache are at one with each other, and both are wrong."""
    run = tmp_path / "run"
    wrong_plan(own)
    with open_stream(own, seed=1) as stream:
        write_run(run, stream)
    config = RunConfig.model_validate({"run": {"name": "x"}, "stream": own.model_dump()})
    assert audit_run(config, run, lambda config: PREPARATION).altered


def test_an_audit_hashes_again_what_a_marker_vouches_for(own, tmp_path):
    run = tmp_path / "run"
    with open_stream(own, seed=1) as stream:
        write_run(run, stream)
    config = RunConfig.model_validate({"run": {"name": "x"}, "stream": own.model_dump()})
    assert audit_run(config, run, lambda config: PREPARATION).is_clean
    changed_shard(own)
    read_all(own)  # not looked at again today
    with pytest.raises(DataError, match=r"x-00000\d.tar: its content has changed"):
        audit_run(config, run, lambda config: PREPARATION)


def test_an_audit_packs_no_shard_that_the_run_has_not_read(own, monkeypatch):
    folder = Path(own.sources["a"].shards)
    expected = open_dataset(folder, own).counts.tolist()
    packed = []
    pack = dataset.plan_shard
    monkeypatch.setattr(dataset, "plan_shard", lambda *a, **k: packed.append(a) or pack(*a, **k))
    opened = open_dataset(folder, own, look="an audit")
    assert opened.counts.tolist() == expected and len(expected) > 1
    opened.read([0])
    assert len(packed) == 1
    opened.close()


def test_counts_of_another_dataset_or_beyond_its_tokens_are_not_taken(own):
    path = Path(own.sources["a"].shards) / COUNTS
    tree = unseal(path.read_bytes())
    expected = open_dataset(path.parent, own).counts.tolist()
    lies = ({"manifest": "0" * 64}, {"counts": [10**6] * len(expected)}, {"counts": [-1]})
    for lie in (*lies, {"counts": None}, {"version": 1}, {"more": 1}):
        path.write_bytes(seal(tree | lie))
        assert open_dataset(path.parent, own).counts.tolist() == expected
        assert json.loads(path.read_text())["counts"] == expected
