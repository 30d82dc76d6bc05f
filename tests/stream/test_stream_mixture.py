import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.errors import ConfigError
from lmscale.stream.mixture import Mixture, append_segment, plan_quotas

NAMES = ("a", "b", "c", "d")
weights_of_sources = st.dictionaries(
    st.sampled_from(NAMES), st.sampled_from([0.5, 1.0, 2.0, 7.0]), min_size=1
)


def build_segments(changes, *, seed=1, block=32):
    segments = ()
    for n, weights in changes:
        segments = append_segment(
            segments, n=n, seed=seed, quotas=plan_quotas(weights, block), fingerprints={}
        )
    return segments


def test_quotas_are_dealt_by_largest_remainder():
    assert plan_quotas({"b": 1, "a": 1, "c": 1}, 32) == {"a": 11, "b": 11, "c": 10}
    assert plan_quotas({"a": 0.7, "b": 0.3}, 4096) == {"a": 2867, "b": 1229}
    assert plan_quotas({"a": 1, "b": 0}, 16) == {"a": 16}


@settings(max_examples=80, deadline=None)
@given(
    weights=st.dictionaries(st.sampled_from(NAMES), st.floats(0.1, 9), min_size=1),
    block=st.integers(400, 9000),
)
def test_quotas_fill_the_block_and_are_within_one_of_the_exact_share(weights, block):
    quotas = plan_quotas(weights, block)
    assert sum(quotas.values()) == block
    for name, weight in weights.items():
        assert abs(quotas[name] - block * weight / sum(weights.values())) < 1


def test_a_weight_that_earns_no_sample_is_refused():
    with pytest.raises(ConfigError, match=r"sources.b.weight is 0.001 .* raise mixture_block"):
        plan_quotas({"a": 1, "b": 0.001}, 64)


@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 70), weights_of_sources), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_over_any_changes_every_source_is_read_in_order_without_gap_or_repeat(changes, seed):
    n, schedule = 0, []
    for length, weights in changes:
        schedule.append((n, weights))
        n += length
    mixture = Mixture(build_segments(schedule, seed=seed), seed=seed)
    total = n + 50
    sources, indices = mixture.locate(0, total)
    for number, name in enumerate(mixture.names):
        mine = indices[sources == number].tolist()
        assert mine == list(range(len(mine)))
        assert mixture.counts_at(total).get(name, 0) == len(mine)


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 200), count=st.integers(1, 100))
def test_a_sample_does_not_depend_on_where_reading_began(first, count):
    segments = build_segments([(0, {"a": 3, "b": 1}), (45, {"b": 1, "c": 1}), (130, {"a": 1})])
    whole = np.stack(Mixture(segments, seed=1).locate(0, 300))
    part = np.stack(Mixture(segments, seed=1).locate(first, count))
    assert (part == whole[:, first : first + count]).all()


def test_a_change_leaves_everything_before_it_as_it_was():
    before = build_segments([(0, {"a": 3, "b": 1})])
    after = append_segment(
        before, n=45, seed=1, quotas=plan_quotas({"a": 1, "c": 1}, 32), fingerprints={}
    )
    old, new = Mixture(before, seed=1), Mixture(after, seed=1)
    old_sources, old_indices = old.locate(0, 45)
    new_sources, new_indices = new.locate(0, 45)
    assert [old.names[s] for s in old_sources] == [new.names[s] for s in new_sources]
    assert old_indices.tolist() == new_indices.tolist()


def test_the_same_quotas_append_nothing_and_an_unused_mixture_is_replaced():
    segments = build_segments([(0, {"a": 3, "b": 1}), (40, {"b": 2, "a": 6})])
    assert len(segments) == 1
    segments = build_segments([(0, {"a": 3, "b": 1}), (40, {"a": 1}), (40, {"b": 1})])
    assert [segment.start for segment in segments] == [0, 40]
    assert segments[-1].base["a"] + segments[-1].base["b"] == 40


def test_the_order_of_the_sources_in_the_yaml_does_not_matter():
    one = build_segments([(0, {"a": 3, "b": 1, "c": 1})])
    other = build_segments([(0, {"c": 1, "b": 1, "a": 3})])
    assert one == other
    assert list(one[0].quotas) == ["a", "b", "c"]
