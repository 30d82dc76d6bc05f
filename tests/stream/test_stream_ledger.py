import json
import resource
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import log_commit

from lmscale.config import parse_config, plan_batches
from lmscale.errors import DataError, NoSpaceError
from lmscale.objective.causal import CausalPreparation
from lmscale.objective.objective import build_preparation
from lmscale.ranks.limbs import DIGEST_BITS, digest_to_limbs, limbs_to_digest
from lmscale.stream.audit import audit_run, check_sequence
from lmscale.stream.ledger import LedgerRow, load_record, open_ledger, read_ledger
from lmscale.stream.loader import digest_steps
from lmscale.stream.stream import open_stream

PREPARATION = CausalPreparation(mask_documents=True)

PLAN = plan_batches(global_windows=8, micro_windows=4, data_ranks=2)


def row(step, first_n=None, samples=8, digest=5):
    first_n = 8 * step if first_n is None else first_n
    return LedgerRow(step=step, first_n=first_n, samples=samples, tokens=9, digest=digest)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.integers(0, 2**DIGEST_BITS - 1), min_size=1, max_size=20))
def test_limbs_summed_in_float64_give_the_sum_of_the_digests(parts):
    sums = [sum(limb) for limb in zip(*map(digest_to_limbs, parts), strict=True)]
    assert limbs_to_digest(sums) == sum(parts) % 2**DIGEST_BITS


def test_limbs_stay_exact_over_a_million_ranks():
    largest = digest_to_limbs(2**DIGEST_BITS - 1)
    sums = [limb * 1_000_000 for limb in largest]
    assert max(sums) < 2**53
    assert limbs_to_digest(sums) == (2**DIGEST_BITS - 1) * 1_000_000 % 2**DIGEST_BITS


@pytest.fixture
def stream(stream_config):
    with open_stream(stream_config(a=3, b=1), seed=1) as opened:
        yield opened


def test_rows_are_read_back_as_they_were_written(tmp_path, stream):
    rows = [row(step, digest=2**63 - 1 - step) for step in range(5)]
    with open_ledger(tmp_path, next_step=0, stream=stream, n=0) as ledger:
        for one in rows:
            ledger.append(one)
    assert read_ledger(tmp_path) == rows
    line = (tmp_path / "ledger.jsonl").read_text().splitlines()[0]
    assert (
        line == '{"step": 0, "first_n": 0, "samples": 8, "tokens": 9, "digest": "7fffffffffffffff"}'
    )


def test_resuming_moves_the_rows_of_thrown_away_steps_aside(tmp_path, stream):
    with open_ledger(tmp_path, next_step=0, stream=stream, n=0) as ledger:
        for step in range(5):
            ledger.append(row(step))
    with open_ledger(tmp_path, next_step=3, stream=stream, n=24) as ledger:
        assert len(read_ledger(tmp_path)) == 3
        ledger.append(row(3, digest=6))
    assert [one.step for one in read_ledger(tmp_path)] == [0, 1, 2, 3]
    rewound = (tmp_path / "ledger.rewound.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in rewound] == [3, 4]


def test_a_torn_last_line_is_dropped_and_a_damaged_one_is_kept_for_the_audit_to_name(
    tmp_path, stream, caplog
):
    open_ledger(tmp_path, next_step=0, stream=stream, n=0).close()
    path = tmp_path / "ledger.jsonl"
    path.write_text(row(0).to_line() + row(1).to_line()[:-9])
    assert read_ledger(tmp_path) == [row(0)]
    with open_ledger(tmp_path, next_step=1, stream=stream, n=8) as ledger:
        ledger.append(row(1))
    assert read_ledger(tmp_path) == [row(0), row(1)]
    path.write_text("{}\n" + row(1).to_line())
    open_ledger(tmp_path, next_step=2, stream=stream, n=16).close()
    assert "ledger.jsonl, line 1: step is missing" in caplog.text
    with pytest.raises(DataError, match="ledger.jsonl, line 1: not a row of a ledger"):
        read_ledger(tmp_path)


def test_a_folder_without_a_ledger_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no ledger"):
        read_ledger(tmp_path)


def test_gaps_and_overlaps_of_the_samples_are_told_apart():
    assert check_sequence([row(0), row(1), row(2)]) == ([], [])
    lost, repeated = check_sequence([row(0), row(2)])
    assert lost == ["samples 8 to 15 were used by no step (between step 0 and step 2)"]
    assert repeated == []
    lost, repeated = check_sequence([row(0), row(1), row(1), row(2)])
    assert lost == []
    assert repeated == ["samples 8 to 15 were used again by step 1"]
    assert check_sequence([row(1)])[0] == ["samples 0 to 7 were used by no step (before step 1)"]


def config_of(stream_section):
    config = parse_config("run: {name: x, seed: 1}")
    return config.model_copy(update={"stream": stream_section})


def train(folder, config, *, first_step, last_step, state=None):
    """What a run does to its ledger:

    steps first_step … last_step - 1; returns the state to save.
    """
    with open_stream(config, seed=1, state=state) as stream:
        n = first_step * PLAN.global_windows
        steps = digest_steps(
            stream,
            PLAN,
            preparation=PREPARATION,
            first_step=first_step,
            num_steps=last_step - first_step,
            workers=0,
        )
        with open_ledger(folder, next_step=first_step, stream=stream, n=n) as ledger:
            for step in steps:
                ledger.append(step)
        return stream.state_at(last_step * PLAN.global_windows)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_the_audit_of_a_run_with_restarts_and_other_mixtures_is_clean(
    tmp_path, stream_config, packing
):
    one = stream_config(a=3, b=1, packing=packing)
    other = stream_config(b=1, tiny=1, packing=packing)
    saved = train(tmp_path, one, first_step=0, last_step=6)
    train(tmp_path, one, first_step=6, last_step=9, state=saved)  # killed before it saved
    saved = train(tmp_path, other, first_step=6, last_step=11, state=saved)
    train(tmp_path, one, first_step=11, last_step=13, state=saved)
    checked = []
    report = audit_run(config_of(other), tmp_path, build_preparation, checked.append)
    assert report.is_clean
    assert (report.steps, report.samples, sum(checked)) == (13, 104, 104)
    assert len(load_record(tmp_path)[0].segments) == 3


def test_the_audit_names_what_is_lost_repeated_and_altered(tmp_path, stream_config):
    config = stream_config(a=3, b=1)
    train(tmp_path, config, first_step=0, last_step=6)
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    altered = json.loads(lines[4]) | {"digest": "00000000000000aa"}
    recounted = json.loads(lines[5]) | {"tokens": 1}
    path.write_text(
        "".join([lines[0], lines[2], lines[2], lines[3]])
        + f"{json.dumps(altered)}\n{json.dumps(recounted)}\n"
    )
    report = audit_run(config_of(config), tmp_path, build_preparation)
    assert not report.is_clean
    assert report.lost == ("samples 8 to 15 were used by no step (between step 0 and step 2)",)
    assert report.repeated == ("samples 16 to 23 were used again by step 2",)
    assert len(report.altered) == 2
    assert report.altered[0].startswith(
        "step 4 (samples 32 to 39): the ledger's digest is 00000000000000aa, the shards give "
    )
    assert "the ledger counts 1 tokens, the shards give" in report.altered[1]


def save(folder, step, **changes):
    """A checkpoint as far as the audit knows of it."""
    log_commit(folder, step, n=step * PLAN.global_windows, **changes)


def cut(folder, rows):
    path = folder / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))


def test_a_ledger_without_its_tail_is_not_clean(tmp_path, stream_config):
    config = stream_config(a=3, b=1)
    train(tmp_path, config, first_step=0, last_step=6)
    save(tmp_path, 3)
    save(tmp_path, 5)
    assert audit_run(
        config_of(config), tmp_path, build_preparation
    ).is_clean  # ahead of the checkpoint
    cut(tmp_path, 4)
    (lost,) = audit_run(config_of(config), tmp_path, build_preparation).lost
    assert lost.startswith("samples 32 to 39 are missing at the ledger's end (after step 3): ")
    assert "checkpoint step-000000005 has 40 samples used" in lost
    cut(tmp_path, 0)
    (lost,) = audit_run(config_of(config), tmp_path, build_preparation).lost
    assert lost.startswith("samples 0 to 39 are missing at the ledger's end (it has no rows)")


def test_a_ledger_that_ends_before_the_last_start_is_not_clean(tmp_path, stream_config, caplog):
    config = stream_config(a=1)
    saved = train(tmp_path, config, first_step=0, last_step=6)
    cut(tmp_path, 4)
    train(tmp_path, config, first_step=6, last_step=6, state=saved)
    assert "2 of the 6 steps done so far have no row" in caplog.text
    (lost,) = audit_run(config_of(config), tmp_path, build_preparation).lost
    assert "samples 32 to 47" in lost and "last start (stream.json) has 48" in lost


def test_checkpoints_that_a_start_before_them_has_undone_do_not_count(tmp_path, stream_config):
    config = stream_config(a=1)
    saved = train(tmp_path, config, first_step=0, last_step=2)
    for step in (2, 5):
        save(tmp_path, step)
    # Checkpoint 5 was damaged: the run goes on from 2, and is killed before it comes to 5 again.
    train(tmp_path, config, first_step=2, last_step=4, state=saved)
    assert audit_run(config_of(config), tmp_path, build_preparation).is_clean
    save(tmp_path, 5, sha256="of another save")
    assert len(audit_run(config_of(config), tmp_path, build_preparation).lost) == 1


@contextmanager
def full_disk(largest_file):
    """No file of this process can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_that_says_so_and_leaves_whole_lines(tmp_path, stream):
    with pytest.raises(NoSpaceError, match=r"No space is left in .* ledger.jsonl"):  # noqa: SIM117
        with open_ledger(tmp_path, next_step=0, stream=stream, n=0) as ledger:
            ledger.append(row(0))
            with full_disk(len(row(0).to_line()) + 20):
                ledger.append(row(1))
    assert (tmp_path / "ledger.jsonl").read_text() == row(0).to_line()


def test_closing_the_ledger_does_not_hide_the_error_before_it(tmp_path, stream):
    with pytest.raises(KeyError):  # noqa: SIM117
        with open_ledger(tmp_path, next_step=0, stream=stream, n=0):
            (tmp_path / "ledger.jsonl").unlink()
            raise KeyError
    with pytest.raises(DataError):  # noqa: SIM117
        with open_ledger(tmp_path, next_step=0, stream=stream, n=0):
            (tmp_path / "ledger.jsonl").unlink()


def test_the_audit_refuses_shards_that_are_not_the_runs(
    tmp_path, stream_config, write_dataset, documents
):
    write_dataset(tmp_path / "a", documents(50, seed=1))
    config = stream_config(folder=tmp_path, a=1)
    train(tmp_path, config, first_step=0, last_step=2)
    write_dataset(tmp_path / "a", documents(50, seed=2))
    with pytest.raises(DataError, match="is not the one that the run has read"):
        audit_run(config_of(config), tmp_path, build_preparation)
