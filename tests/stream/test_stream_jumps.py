"""A window that a run jumps is left out of the order, and nothing else changes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config import parse_config
from lmscale.config.data import plan_batches
from lmscale.errors import CheckpointError
from lmscale.files.reading import seal
from lmscale.objective.causal import CausalPreparation
from lmscale.objective.objective import build_preparation
from lmscale.stream.audit import audit_run
from lmscale.stream.ledger import load_record, open_ledger
from lmscale.stream.loader import digest_steps
from lmscale.stream.mixture import Jump, Mixture, append_segment, jump_window, plan_quotas
from lmscale.stream.stream import StreamState, open_stream

PREPARATION = CausalPreparation(mask_documents=True)

PLAN = plan_batches(global_windows=8, micro_windows=2, data_ranks=1)
MIXTURES = st.dictionaries(st.sampled_from("abc"), st.sampled_from([1.0, 2.0, 7.0]), min_size=1)
# Each (start, samples) in the numbers that hold once those before it are left out.
JUMPS = st.lists(st.tuples(st.integers(0, 150), st.integers(1, 90)), max_size=5)


def mixture_of(changes, seed):
    n, segments = 0, ()
    for length, weights in changes:
        quotas = plan_quotas(weights, 32)
        segments = append_segment(segments, n=n, seed=seed, quotas=quotas, fingerprints={})
        n += length
    return segments


def samples_of(segments, count, *, seed=1):
    mixture = Mixture(segments, seed=seed)
    sources, indices = mixture.locate(0, count)
    return [(mixture.names[s], i) for s, i in zip(sources.tolist(), indices.tolist(), strict=True)]


@settings(max_examples=100, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(1, 70), MIXTURES), min_size=1, max_size=4),
    jumps=JUMPS,
    seed=st.integers(0, 99),
)
def test_the_order_with_jumps_is_the_plain_order_with_the_windows_left_out(changes, jumps, seed):
    segments = mixture_of(changes, seed)
    expected = samples_of(segments, 1000, seed=seed)
    for start, samples in jumps:
        segments = jump_window(segments, start=start, samples=samples)
        del expected[start : start + samples]
    found = samples_of(segments, 500, seed=seed)
    assert found == expected[:500]
    assert len(set(found)) == len(found)  # none is used twice
    starts = [segment.start for segment in segments]
    assert starts == sorted(set(starts))


@settings(max_examples=60, deadline=None)
@given(weights=MIXTURES, jumps=JUMPS, n=st.integers(0, 300))
def test_the_counts_know_what_was_used_and_what_was_jumped(weights, jumps, n):
    segments = mixture_of([(1, weights)], 1)
    for start, samples in jumps:
        segments = jump_window(segments, start=start, samples=samples)
    mixture = Mixture(segments, seed=1)
    used = samples_of(segments, n)
    counts = mixture.counts_at(n)
    left_out = {
        name: counts[name] - sum(source == name for source, _ in used) for name in mixture.names
    }
    assert min(left_out.values()) >= 0
    assert mixture.jumped_at(n) == sum(left_out.values())
    after = Mixture(segments, seed=1).jumped_at(10_000)
    assert after == sum(samples for _, samples in jumps)


@settings(max_examples=40, deadline=None)
@given(before=MIXTURES, after=MIXTURES, jumps=JUMPS, n=st.integers(0, 300))
def test_a_mixture_that_changes_behind_a_jump_uses_no_sample_twice(before, after, jumps, n):
    segments = mixture_of([(1, before)], 1)
    for start, samples in jumps:
        segments = jump_window(segments, start=start, samples=samples)
    jumped = Mixture(segments, seed=1).jumped_at(n)
    quotas = plan_quotas(after, 32)
    changed = append_segment(segments, n=n, seed=1, quotas=quotas, fingerprints={})
    found = samples_of(changed, 600)
    assert len(set(found)) == len(found)
    assert found[:n] == samples_of(segments, n)
    if quotas == segments[0].quotas:
        assert changed == segments
    else:  # what lay ahead is dropped
        assert Mixture(changed, seed=1).jumped_at(600) == jumped


def test_a_change_of_the_mixture_drops_the_jumps_ahead_with_a_warning(caplog):
    segments = jump_window(mixture_of([(1, {"a": 1.0})], 1), start=50, samples=10)
    quotas = plan_quotas({"b": 1}, 32)
    changed = append_segment(segments, n=20, seed=1, quotas=quotas, fingerprints={})
    assert [segment.start for segment in changed] == [0, 20]
    assert "changes at sample 20, so the samples that the run was to jump at sample 50" in (
        caplog.text
    )


def test_what_lies_ahead_is_kept_as_far_as_the_mixture_is_the_same(caplog):
    changes = [(80, {"a": 1.0}), (1, {"a": 1.0, "b": 1.0})]
    segments = jump_window(mixture_of(changes, 1), start=50, samples=10)
    same, back = ({"a": 16, "b": 16}, {"a": 32})
    assert append_segment(segments, n=20, seed=1, quotas=same, fingerprints={}) == segments
    changed = append_segment(segments, n=20, seed=1, quotas=back, fingerprints={})
    assert changed == segments[:2] and Mixture(changed, seed=1).jumped_at(60) == 10
    assert not caplog.records


def test_a_jump_behind_a_change_of_the_mixture_is_made_from_before_the_change(stream_config):
    """The mixture changed at a start, and the next start is at the same checkpoint again."""
    saved = open_stream(stream_config(a=3, b=1), seed=1).state_at(48)
    config = stream_config(a=1, b=1)
    undone = open_stream(config, seed=1, state=saved)
    plain = content(undone, 0, 300)
    jump = Jump(start=72, samples=24, segments=undone.segments)
    stream = open_stream(config, seed=1, state=saved, jumps=(jump,))
    assert content(stream, 0, 200) == (plain[:72] + plain[96:])[:200]
    assert stream.mixture.jumped_at(200) == 24
    again = Jump(start=80, samples=8, segments=stream.segments)
    twice = open_stream(config, seed=1, state=saved, jumps=(jump, again))
    assert content(twice, 0, 200) == (plain[:72] + plain[96:104] + plain[112:])[:200]


def content(stream, first_n, count):
    return stream.read_rows(first_n, count).tokens.tolist()


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_stream_reads_across_a_jump_and_its_state_keeps_one_that_lies_ahead(
    stream_config, packing
):
    config = stream_config(a=3, b=1, packing=packing)
    plain = content(open_stream(config, seed=1), 0, 300)
    saved = open_stream(config, seed=1).state_at(40)
    stream = open_stream(
        config, seed=1, state=saved, jumps=(Jump(start=50, samples=30), Jump(start=90, samples=7))
    )
    expected = plain[:50] + plain[80:120] + plain[127:]
    assert content(stream, 0, 260) == expected[:260]
    for n in (40, 45, 50, 51, 200):
        tree = json.dumps(stream.state_at(n).to_json())
        assert len(tree) < 1500
        resumed = open_stream(config, seed=1, state=StreamState.from_json(json.loads(tree)))
        assert content(resumed, 40, 200) == expected[40:240]
    assert stream.mixture.jumped_at(50) == 30
    assert stream.mixture.jumped_at(89) == 30
    assert stream.mixture.jumped_at(90) == 37


def test_a_state_of_another_version_is_refused(stream_config):
    tree = open_stream(stream_config(a=3, b=1), seed=1).state_at(40).to_json()
    with pytest.raises(CheckpointError, match="has version 3; this lmscale reads 2"):
        StreamState.from_json(tree | {"version": 3})


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 0), (4, 0)])
def test_the_digest_of_a_step_at_a_jump_does_not_depend_on_the_ranks(
    stream_config, world_size, workers
):
    config = stream_config(a=3, b=1)
    state = open_stream(config, seed=1).state_at(0)

    def digests(plan, workers):
        with open_stream(
            config, seed=1, state=state, jumps=(Jump(start=29, samples=13),)
        ) as stream:
            rows = digest_steps(
                stream, plan, preparation=PREPARATION, first_step=0, num_steps=8, workers=workers
            )
            return [(row.first_n, row.digest, row.tokens) for row in rows]

    plan = plan_batches(global_windows=8, micro_windows=2, data_ranks=world_size)
    assert digests(plan, workers) == digests(PLAN, 0)


def test_the_audit_of_a_run_with_jumps_is_clean_and_counts_them(tmp_path, stream_config):
    config = stream_config(a=3, b=1)
    run_config = parse_config("run: {name: x, seed: 1}").model_copy(update={"stream": config})

    def train(first_step, last_step, state, jumps=()):
        with open_stream(config, seed=1, state=state, jumps=jumps) as stream:
            n = first_step * 8
            steps = digest_steps(
                stream,
                PLAN,
                preparation=PREPARATION,
                first_step=first_step,
                num_steps=last_step - first_step,
                workers=0,
            )
            with open_ledger(tmp_path, next_step=first_step, stream=stream, n=n) as ledger:
                for step in steps:
                    ledger.append(step)
            return stream.state_at(last_step * 8)

    saved = train(0, 4, None)
    train(4, 9, saved)
    plain = audit_run(run_config, tmp_path, build_preparation)
    assert plain.is_clean and plain.jumped == 0
    # Step 9 was bad: back to step 4, and over the samples of the last two of them.
    saved = train(4, 6, saved, (Jump(start=56, samples=16),))
    before = audit_run(run_config, tmp_path, build_preparation)
    assert before.is_clean and (before.steps, before.jumped) == (6, 0)
    train(6, 12, saved)
    report = audit_run(run_config, tmp_path, build_preparation)
    assert report.is_clean and (report.steps, report.samples, report.jumped) == (12, 96, 16)
    assert len(load_record(tmp_path)[0].segments) == 2
    # Without the jump in the run's record, its samples are not what the ledger says.
    path = tmp_path / "stream.json"
    tree = json.loads(path.read_text())
    del tree["state"]["segments"][1]
    del tree["sha256"]
    path.write_bytes(seal(tree))
    assert len(audit_run(run_config, tmp_path, build_preparation).altered) == 12 - 7


def test_rows_are_read_in_their_source_s_order_where_a_jump_is_inside_them(stream_config):
    config = stream_config(a=1)
    plain = open_stream(config, seed=1).read_rows(0, 40)
    state = open_stream(config, seed=1).state_at(0)
    jumped = open_stream(config, seed=1, state=state, jumps=(Jump(start=10, samples=5),)).read_rows(
        0, 35
    )
    kept = np.r_[0:10, 15:40]
    assert (jumped.tokens == plain.tokens[kept]).all()
    assert (jumped.lengths == plain.lengths[kept]).all()
