import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.rendezvous import (
    environment_for,
    expand_nodes,
    expand_tasks_per_node,
    find_free_port,
    is_task_of_many,
    meet_in_step,
    rendezvous_from_slurm,
)
from lmscale.errors import ClusterError

SLURM = {
    "SLURM_JOB_ID": "812",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NODELIST": "gpu[01-03],big",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "12345",
    # the job is larger than the step
    "SLURM_NTASKS": "99",
    "SLURM_NODELIST": "other[1-9]",
    "SLURM_TASKS_PER_NODE": "11(x9)",
}


def test_a_rank_gets_torchruns_variables():
    assert environment_for(
        3,
        world_size=4,
        local_rank=1,
        local_world_size=2,
        node_rank=1,
        master=("10.0.0.1", 1234),
    ) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "1234",
    }


def test_a_slurm_task_finds_its_place_in_the_step_not_in_the_job():
    assert rendezvous_from_slurm(SLURM) == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "12345",
    }


def without_meeting(**more):
    return {name: value for name, value in SLURM.items() if "MASTER" not in name} | more


def test_tasks_of_a_step_that_a_person_typed_meet_on_its_first_node():
    task = without_meeting()
    found = meet_in_step(task)
    assert found == {"MASTER_ADDR": "gpu01", "MASTER_PORT": str(10_000 + 812 * 7 + 1)}
    assert rendezvous_from_slurm(task | found)["MASTER_ADDR"] == "gpu01"
    assert meet_in_step(without_meeting(SLURM_STEP_NODELIST="n7"))["MASTER_ADDR"] == "127.0.0.1"
    assert meet_in_step(without_meeting(SLURM_STEP_ID="2"))["MASTER_PORT"] != found["MASTER_PORT"]


def test_a_meeting_place_that_a_person_has_set_stands():
    assert meet_in_step(SLURM) == {}
    assert meet_in_step(without_meeting(MASTER_ADDR="ib-1")).keys() == {"MASTER_PORT"}


@pytest.mark.parametrize(
    ("more", "is_task"),
    [({}, True), ({"SLURM_STEP_NUM_TASKS": "1"}, False), ({"RANK": "0", "WORLD_SIZE": "2"}, False)],
)
def test_only_one_of_several_tasks_that_nobody_made_a_rank_becomes_one(more, is_task):
    assert is_task_of_many(SLURM | more) == is_task
    assert not is_task_of_many({})


def test_all_that_slurm_left_out_is_reported_together():
    with pytest.raises(ClusterError) as caught:
        rendezvous_from_slurm({"SLURM_PROCID": "x"})
    assert len(caught.value.problems) == 7
    assert "SLURM_PROCID = 'x' is not a whole number." in caught.value.problems
    assert any(
        "SLURM_STEP_TASKS_PER_NODE is not set" in problem for problem in caught.value.problems
    )


def test_counts_that_contradict_the_world_size_are_refused():
    with pytest.raises(ClusterError, match="Slurm names 9 tasks on 4 nodes"):
        rendezvous_from_slurm(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,2(x3)"})


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("login", ("login",)),
        ("gpu[01-03,7],login", ("gpu01", "gpu02", "gpu03", "gpu7", "login")),
        ("a[1-2]b[3-4]", ("a1b3", "a1b4", "a2b3", "a2b4")),
        ("n[098-101].site", ("n098.site", "n099.site", "n100.site", "n101.site")),
        ("a,b[2],c", ("a", "b2", "c")),
    ],
)
def test_node_lists_expand(text, nodes):
    assert expand_nodes(text) == nodes


@pytest.mark.parametrize("text", ["", "gpu[1-", "gpu[a-b]", "gpu[1,]"])
def test_a_broken_node_list_is_refused(text):
    with pytest.raises(ClusterError, match="Slurm node list"):
        expand_nodes(text)


@given(counts=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 9)), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_tasks_per_node_expand_to_every_node(counts):
    text = ",".join(f"{tasks}(x{nodes})" if nodes > 1 else f"{tasks}" for tasks, nodes in counts)
    expected = tuple(tasks for tasks, nodes in counts for _ in range(nodes))
    assert expand_tasks_per_node(text) == expected


def test_a_broken_tasks_per_node_is_refused():
    with pytest.raises(ClusterError, match="found 'x3'"):
        expand_tasks_per_node("2,x3")


def test_a_free_port_can_be_bound():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", find_free_port()))
