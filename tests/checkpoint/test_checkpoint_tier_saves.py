"""Saves to the disks of two nodes, by two real ranks, one of which meets with refusals."""

import errno
import json
from pathlib import Path

import pytest
from forked_ranks import run_starts
from handmade_checkpoints import manifest_of, parts_of_rank, save

from lmscale.checkpoint.places.local_tier import LocalTier, NodePlace
from lmscale.errors import LmscaleError, TransientError
from lmscale.ranks.ranks import Ranks

REFUSED, CUT_OFF = 4, 8  # steps
STEPS = (2, REFUSED, 6, CUT_OFF)


class RefusingPlace(NodePlace):
    refuses = False

    def commit(self, step, manifest):
        if self.refuses:
            raise PermissionError(errno.EACCES, "refused, says the test")
        return super().commit(step, manifest)


def cut_off(name, value):
    raise TransientError("cut off, says the test")


def start(folder: Path, number: int) -> None:
    """What each rank does: the second one's disk refuses to commit one step, and in another its
    writer cannot reach the first.
    """
    from forked_ranks import one_group

    from lmscale.checkpoint.snapshot import Copy
    from lmscale.checkpoint.writer import CheckpointWriter
    from lmscale.ranks.collectives import gather_json
    from lmscale.ranks.mailbox import open_mailbox
    from lmscale.runs.lease import NO_LEASE

    with one_group() as group:
        rank = group.rank
        ranks = Ranks(rank=rank, world_size=2, local_rank=0)
        place = RefusingPlace(folder / f"node{rank}")
        tier = LocalTier(place, ranks, every_minutes=1.0)
        mailbox = open_mailbox(ranks)
        writer = CheckpointWriter(ranks, mailbox, lease=NO_LEASE, retries=0)
        saw, outcomes = [], []
        for step in STEPS:
            place.refuses = step == REFUSED and rank == 1
            if step == CUT_OFF and rank == 1:
                mailbox.post = cut_off
            copy = Copy(parts=parts_of_rank(step, rank, 2), ready=lambda: None)
            # Of more than the 8 MiB that the store takes in one value.
            draft = manifest_of(step, [], state={"long": "x" * (9 << 20)}) if rank == 0 else None
            job = writer.start(step=step, tier=tier, copy=copy, draft=draft)
            at_first = None
            if step == REFUSED:
                job.done.wait()
                at_first = [job.is_over, job.saved is not None, place.list_steps(committed=False)]
            try:
                ended = writer.wait(job).step
            except LmscaleError as error:
                ended = [type(error).__name__, *error.problems]
            outcomes.append([at_first, [job.is_over, job.saved is not None]])
            saw.append([ended, job.is_cut_off, place.list_steps()])
        writer.close()
        of_all = gather_json([saw, outcomes])
    if group.is_first:
        (folder / "saw.json").write_text(json.dumps(of_all))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each node saw."""
    folder = tmp_path_factory.mktemp("saves")
    run_starts(Path(__file__), folder, (2,))
    return json.loads((folder / "saw.json").read_text())


@pytest.fixture
def saw(seen):
    """Of each node, and of each of ``STEPS``: what the save ended with, whether its ranks were cut
    off from each other, and which steps the node has then.
    """
    return [of_node for of_node, _ in seen]


@pytest.mark.ranks
def test_a_manifest_of_more_bytes_than_the_store_takes_at_once_comes_to_all_nodes(saw):
    assert [of_node[0] for of_node in saw] == [[2, False, [2]]] * 2


@pytest.mark.ranks
def test_a_save_that_one_node_refuses_costs_no_node_the_last_whole_one(saw):
    (_, refused, after, _), (_, other_refused, other_after, _) = saw
    for (kind, problem), is_cut_off, _ in (refused, other_refused):
        assert kind == "CheckpointError" and "refused, says the test" in problem
        assert not is_cut_off  # the run may go on, and so may the tier
    assert (refused[2], other_refused[2]) == ([4, 2], [2])
    assert after == other_after == [6, False, [6, 2]]


@pytest.mark.ranks
def test_no_rank_knows_a_save_to_the_nodes_as_made_before_it_knows_that_of_every_node(seen):
    (_, at_rank_0), (_, at_rank_1) = seen
    (is_over, is_saved, _), known = at_rank_0[STEPS.index(REFUSED)]
    assert (is_over, is_saved) == (False, True)  # it has gone well here
    assert known == at_rank_1[STEPS.index(REFUSED)][1] == [True, False]
    assert at_rank_0[0] == at_rank_1[0] == [None, [True, True]]


@pytest.mark.ranks
def test_what_a_node_cannot_commit_is_gone_from_it_at_once(seen):
    (_, _, uncommitted), _ = seen[1][1][STEPS.index(REFUSED)]
    assert uncommitted == []


@pytest.mark.ranks
def test_that_a_rank_could_not_tell_the_others_is_known_to_all(saw):
    for (kind, problem), is_cut_off, committed in (of_node[3] for of_node in saw):
        assert kind == "TransientError" and "cut off, says the test" in problem
        assert is_cut_off and committed == [6]


def test_what_is_of_later_steps_than_the_run_has_gone_on_from_goes_first(tmp_path):
    node = NodePlace(tmp_path / "node")
    for step in (2, 4, 6):
        save(node, step)
    tier = LocalTier(node, Ranks(), every_minutes=1.0, first_step=4)
    tier.begin_here(8)
    assert node.list_steps() == [4]
