import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.config import deepspeed_config
from lmscale.plan import traffic
from lmscale.plan.collectives import collective_seconds
from lmscale.plan.devices import find_device, plan_machine

KINDS = ("all_reduce", "all_gather", "reduce_scatter")
# Payload in MiB → GB/s of the payload: ML Engineering (github.com/stas00/ml-engineering),
# network/benchmarks/results/all-reduce-8xH200.md, below the sizes at which the switches add up.
EIGHT_H200 = {1: 22.82, 4: 61.23, 16: 125.65, 64: 198.01}


def machine(nodes, devices=8, name="h100"):
    return plan_machine(find_device(name), nodes=nodes, devices_per_node=devices)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_sends_nothing(kind):
    assert collective_seconds(kind, 2**30, machine(1, 1)) == 0


@given(st.sampled_from(KINDS), st.integers(1, 2**36), st.integers(1, 2**36), st.integers(1, 512))
def test_more_bytes_take_longer_and_an_all_reduce_longer_than_its_half(kind, one, other, nodes):
    where = machine(nodes)
    low, high = sorted((one, other))
    assert collective_seconds(kind, low, where) <= collective_seconds(kind, high, where)
    whole = collective_seconds("all_reduce", high, where)
    assert whole <= 2 * collective_seconds("all_gather", high, where) * 1.1
    assert whole >= high / where.intra_bytes_per_second


@given(st.integers(2**20, 2**36), st.integers(1, 256))
def test_more_nodes_take_longer(nbytes, nodes):
    for kind in KINDS:
        few, many = (collective_seconds(kind, nbytes, machine(n)) for n in (nodes, nodes + 1))
        assert few <= many * 1.001


@pytest.mark.parametrize("mebibytes", EIGHT_H200)
def test_an_all_reduce_takes_about_as_long_as_was_measured_on_eight_h200(mebibytes):
    measured = mebibytes * 2**20 / (EIGHT_H200[mebibytes] * 1e9)
    planned = collective_seconds("all_reduce", mebibytes * 2**20, machine(1, name="h200"))
    # The protocol changes between these sizes, which a line through them does not follow.
    assert planned == pytest.approx(measured, rel=0.45)


def test_buckets_are_those_that_deepspeed_is_given():
    assert traffic.BUCKET_ELEMENTS == deepspeed_config.MAX_BUCKET_ELEMENTS
