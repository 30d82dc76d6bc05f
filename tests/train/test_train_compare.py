"""Ranks that hold something else than the others are named, and of ranks that do not nothing is
said.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comparing_ranks import FLIP_AFTER, MODES, OF_TWO, STEPS, WRONG
from forked_ranks import run_starts

from lmscale.objective.scores import LossSum, Scores, Scoring
from lmscale.ranks.attempt import node_name
from lmscale.train.compare import corruption_error, find_recompute_fault, judge

pytestmark = [pytest.mark.ranks]
NUM_RANKS = (2, 3)
HOSTS = ["n1", "n1", "n2", "n2"]


@pytest.fixture(scope="module")
def saw(tiny_data, tmp_path_factory):
    """Number of ranks → rank → what it saw of each mode."""
    folder = tmp_path_factory.mktemp("comparing")
    (folder / "told.json").write_text(json.dumps({"data": str(tiny_data)}))
    run_starts(Path(__file__).with_name("comparing_ranks.py"), folder, NUM_RANKS)
    return {
        count: [
            json.loads((folder / f"saw-{number}-{rank}.json").read_text()) for rank in range(count)
        ]
        for number, count in enumerate(NUM_RANKS)
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_of_three_ranks_the_one_with_a_flipped_bit_is_named_and_what_it_is_in(saw, mode):
    for rank in saw[3]:
        found = rank[mode]["found"]
        assert found["parameter"]["ranks"] == [WRONG]
        assert len(found["parameter"]["names"]) == 1
        assert found["parameter"]["is_certain"]
        assert all(one["ranks"] == [WRONG] and len(one["names"]) == 1 for one in found.values())
        assert rank[mode]["again"] is None, "the bit was put right"


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_at_zero_0_the_optimizers_states_are_compared_as_well(saw, mode):
    found = saw[3][0][mode]["found"].keys()
    of_optimizer = {"exp_avg", "exp_avg_sq"} | ({"master"} if mode == "0-bf16" else set())
    assert found == {"parameter", "buffer"} | (of_optimizer if mode[0] == "0" else set())


@pytest.mark.slow
@pytest.mark.parametrize("mode", OF_TWO)
def test_of_two_ranks_both_are_named(saw, mode):
    for rank in saw[2]:
        found = rank[mode]["found"]["parameter"]
        assert (found["ranks"], found["is_certain"]) == ([0, 1], False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "count"), [*((mode, 2) for mode in OF_TWO), *((mode, 3) for mode in MODES)]
)
def test_training_ends_on_all_ranks_before_the_next_update_and_was_silent_until_then(
    saw, mode, count
):
    errors = [rank[mode]["error"] for rank in saw[count]]
    assert len(set(errors)) == 1
    assert [rank[mode]["steps"] for rank in saw[count]] == [FLIP_AFTER] * count
    assert [rank[mode]["code"] for rank in saw[count]] == [75] * count
    who = "ranks 0-1" if count == 2 else f"rank {WRONG}"
    said = f"Before the update of step {FLIP_AFTER + 1}, {who} on {node_name()} hold"
    assert errors[0].startswith(said)
    assert "norm" in errors[0]
    assert "nothing is saved" in errors[0]
    (row,) = saw[count][0][mode]["rows"]
    assert row["at_step"] == FLIP_AFTER + 1
    assert row["ranks"] == ([0, 1] if count == 2 else [WRONG])
    verb = "differ" if count == 2 else "differs"
    for rank in saw[count]:
        assert rank[mode]["summary"] == f"{who} on {node_name()} {verb}"
        assert list(rank[mode]["bad_nodes"]) == ([] if count == 2 else [node_name()])


@pytest.mark.slow
@pytest.mark.parametrize("mode", OF_TWO)
def test_a_forward_pass_that_is_done_twice_changes_nothing_in_the_steps(saw, mode):
    for rank in saw[2]:
        assert len(rank[mode]["plain"]) == STEPS
        assert rank[mode]["recomputed"] == rank[mode]["plain"]


def of(*values, name="w"):
    return [{name: value} for value in values]


def test_ranks_that_hold_the_same_do_not_differ():
    assert judge(of(5, 5, 5, 5), HOSTS) is None


def test_the_majority_is_right():
    found = judge(of(5, 5, 7, 5), HOSTS)
    assert found is not None
    assert (found.ranks, found.hosts, found.is_certain) == ((2,), ("n2",), True)
    found = judge(of(5, 6, 7, 5), HOSTS)
    assert found is not None and found.ranks == (1, 2), "two do not go wrong in the same way"


def test_where_no_majority_says_who_is_right_all_are_named():
    for values in ((1, 2), (1, 1, 2, 2), (1, 2, 3)):
        found = judge(of(*values), HOSTS)
        assert found is not None and found.ranks == tuple(range(len(values)))
        assert not found.is_certain
        said = str(corruption_error(found, moment="the update of step 9"))
        assert "no majority tells which are right" in said


def test_a_tensor_that_one_rank_does_not_hold_is_a_difference():
    found = judge([{"w": 1, "b": 2}, {"w": 1, "b": 2}, {"w": 1}], HOSTS)
    assert found is not None and (found.ranks, found.names) == ((2,), ("b",))


def test_the_first_of_many_parameters_are_named():
    rows = [{f"p{i}": i + (rank == 3) for i in range(40)} for rank in range(4)]
    found = judge(rows, HOSTS)
    assert found is not None
    said = str(corruption_error(found, moment="the update of step 1000"))
    assert "Before the update of step 1000, rank 3 on n2 holds other values than the other" in said
    assert "p0, p1, p2, p3, p4 and 35 more" in said
    assert "leave the node out" in said


@pytest.mark.parametrize("flip", [0.0, 1e-6])
def test_a_pass_done_again_is_compared_in_every_term_of_the_loss(flip):
    totals = iter((2.0, 1.0, 2.0, 1.0 + flip))

    def term() -> LossSum:
        return LossSum(torch.tensor(next(totals)), torch.tensor(1))

    engine: Any = Scoring(torch.nn.Identity(), lambda model: Scores(term(), {}, (term(),)))
    engine.device = torch.device("cpu")
    batch: Any = SimpleNamespace(micro_batches=[SimpleNamespace(arrays={})])
    fault = find_recompute_fault(engine, batch, 9, lambda: None)
    assert (fault is not None) == (flip > 0)
