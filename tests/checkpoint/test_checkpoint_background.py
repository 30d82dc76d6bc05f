"""Saves beside the training, by real ranks (background_ranks.py is what they do)."""

import json
from pathlib import Path

import pytest
from background_ranks import STAGES
from forked_ranks import run_starts

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

WORLD_SIZES = tuple(STAGES)
CASES = [(size, name) for size, names in STAGES.items() for name in names]


@pytest.fixture(scope="module")
def seen(tiny_data, tmp_path_factory):
    """World size → what its ranks saw."""
    folder = tmp_path_factory.mktemp("background")
    (folder / "data.txt").write_text(str(tiny_data))
    run_starts(Path(__file__).parent / "background_ranks.py", folder, WORLD_SIZES)
    saw = {size: json.loads((folder / f"saw-{size}.json").read_text()) for size in WORLD_SIZES}
    for size in WORLD_SIZES[1:]:
        saw[size]["lost"] = json.loads((folder / f"saw-{size}-lost.json").read_text())
    return saw


@pytest.mark.parametrize(("world_size", "name"), CASES)
def test_a_save_in_the_background_writes_the_very_bytes_of_its_step_while_the_weights_change(
    seen, world_size, name
):
    assert seen[world_size]["same bytes"][name] == {
        "has trained on": [True] * world_size,  # two steps, before a byte was written
        "files are equal": True,  # to those of a save that training waited for
        "number of files": world_size,
        "manifests are equal": True,
        "reasons": ["regular", "last"],
    }


def the_same_of_all(rows):
    first, *others = rows
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("refused", "CheckpointError", "Name a place that this user may write to."),
        ("lasting", "TransientError", "The disk or the network file system failed"),
    ],
)
def test_an_error_in_one_ranks_background_ends_all_ranks_with_it_at_the_same_step(
    seen, world_size, kind, error, words
):
    (step, name, problem), committed = the_same_of_all(seen[world_size]["failing"][kind])
    assert step in (3, 4)  # the save of step 2 went on beside step 3
    assert name == error and words in problem
    if world_size > 1:
        assert problem.endswith(f"(rank {world_size - 1})")
    assert committed == []


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_failure_that_passes_is_tried_again_and_nobody_notices(seen, world_size):
    assert the_same_of_all(seen[world_size]["failing"]["passing"]) == [[8], [8, 6, 4]]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_bug_in_the_background_ends_all_ranks_alike(seen, world_size):
    (_, name, problem), committed = the_same_of_all(seen[world_size]["failing"]["bug"])
    assert name == "TransientError" and committed == []
    assert "KeyError('a bug, says the test')" in problem
    if world_size > 1:
        assert problem.endswith(f"(rank {world_size - 1})")


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_save_that_is_due_while_another_is_under_way_is_left_out_if_the_rule_is_skip(
    seen, world_size
):
    ended, committed, *_ = the_same_of_all(seen[world_size]["skipping"]["skip"])
    assert ended == [7]
    # Not 4; of 6 it depends on how fast the save of 2 came to its end after step 5; the last one
    # is saved whatever is under way.
    assert [step for step in committed if step != 6] == [7, 2]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_save_waits_for_another_if_the_rule_is_wait_and_never_are_two_under_way(seen, world_size):
    rows = seen[world_size]["skipping"]["wait"]
    ended, committed, at_3 = the_same_of_all([row[:3] for row in rows])
    assert ended == [7]
    assert committed == [7, 6, 4]  # keep_last is 3
    assert at_3 == []
    # Ranks look at their own moments, and rank 0 commits at its own.
    assert all(at_4 in ([], [2]) for *_, at_4 in rows)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_full_disk_first_takes_old_checkpoints(seen, world_size):
    assert the_same_of_all(seen[world_size]["full"]["makes room"]) == [[6], [6, 4]]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_disk_that_stays_full_ends_all_ranks_saying_what_is_needed_and_the_run_is_whole(
    seen, world_size
):
    full = seen[world_size]["full"]
    assert full["start"] == 6
    ended, committed = the_same_of_all(full["gives up"])
    step, name, no_space, needed, advice = ended
    assert (step, name, committed) == (8, "NoSpaceError", [6])
    assert "No space is left in" in no_space
    assert "The checkpoint of step 8 in" in needed and "takes 0.6 MB" in needed
    assert "What was there of step 4 was removed, which was not enough." in needed
    assert "goes on from its last commit" in advice and "checkpoint.folder" in advice
    assert full["again"] == [6, 8, [8, 6]]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_rows_that_rank_0_cannot_write_end_all_ranks_and_no_checkpoint_knows_of_their_steps(
    seen, world_size
):
    assert the_same_of_all(seen[world_size]["refused"]) == [
        5,
        "the ledger's disk is full, says the test",
        [2],
    ]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_run_that_was_taken_over_during_a_save_commits_nothing_and_says_so_on_all_ranks(
    seen, world_size
):
    (step, name, problem), is_committed = the_same_of_all(seen[world_size]["overtaken"])
    assert step in (3, 4) and name == "LeaseLostError"
    assert "taken over by attempt 7.1" in problem
    assert not is_committed


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_manifest_of_an_older_copy_that_comes_late_is_cleared_away_and_the_step_saved_again(
    seen, world_size
):
    expected = [[4], world_size, [None] * world_size, [4, 2]]
    assert the_same_of_all(seen[world_size]["late"]) == expected


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_a_rank_that_waits_for_a_save_sees_at_once_that_another_has_died(seen, world_size):
    assert seen[world_size]["lost"] is True
