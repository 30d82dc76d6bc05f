"""What two ranks see when they save and resume together (saving_ranks.py is what they do)."""

import pytest
from saving_ranks import STAGES

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


@pytest.mark.parametrize("name", STAGES)
def test_the_weights_read_back_are_the_engines_fp32_masters(saved, name):
    of_ranks = saved[0]["masters"][name]
    assert all(are_equal and fragments for are_equal, fragments, _, _ in of_ranks)


@pytest.mark.parametrize("name", STAGES)
def test_every_element_is_written_by_one_rank_and_each_rank_writes_about_half(saved, name):
    of_ranks = saved[0]["masters"][name]
    total = of_ranks[0][3]
    owned = [rank[2] for rank in of_ranks]
    assert sum(owned) == total
    assert min(owned) > 0.45 * total


def test_all_ranks_walk_back_when_one_of_them_finds_damage(saved):
    assert saved[0]["walk back"] == [4, 4]


def test_a_named_step_that_two_ranks_see_otherwise_is_refused_by_both(saved):
    for (problem,) in saved[0]["two views"]:
        assert problem.endswith("step-000000006 does not look the same to all ranks.")


def test_what_a_killed_save_left_is_no_checkpoint_and_is_replaced(saved):
    assert saved[0]["leftover"] == {
        "resumed from": 0,
        "files": ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"],
        "resumable": 2,
    }


def test_weights_that_are_not_finite_are_marked_passed_over_and_push_no_good_ones_out(saved):
    assert saved[0]["not finite"] == {
        "steps": [3, 2],  # keep_last is 1: step 2 would be gone
        "resumable": 2,
        "resumed from": 2,
        "steps at the end": [4],
    }


def test_one_full_disk_is_told_by_all_ranks_and_the_older_checkpoint_stays(saved):
    found = saved[0]["full disk"]
    assert found["problems"][0] == found["problems"][1]
    kind, problem, needed, advice = found["problems"][0]
    assert kind == "NoSpaceError"
    assert "No space is left in" in problem and problem.endswith(
        "run the same command again. (rank 1)"
    )
    assert "The checkpoint of step 3 in" in needed and "takes 0.6 MB" in needed
    assert "There was nothing to remove" in needed
    assert advice.startswith("The run is whole and goes on from its last commit")
    assert found["resumable"] == 2
    assert found["again"] == [[], []]
    assert found["resumable then"] == 3


def test_a_checkpoint_of_another_model_is_named_with_the_settings_that_differ(saved):
    said = saved[0]["another model"]
    assert said[0] == said[1]
    text = "\n".join(said[0])
    assert said[0][0] == "CheckpointError"
    assert "model.layers was 2 when it was written and is 3 now" in text
    assert "model.activation was 'swiglu' when it was written and is 'gelu' now" in text
    assert "Give this run a folder of its own (run.folder)" in text
