"""Which of a run's checkpoints still belong to it, wherever that is asked."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from forked_ranks import one_group
from handmade_checkpoints import IDENTITY, manifest_of, save

from lmscale.checkpoint.places.place import LocalPlace
from lmscale.config.safety import GuardConfig
from lmscale.errors import GuardError
from lmscale.files.jsonl import append_row
from lmscale.files.strangers import checked
from lmscale.guard.divergence import Divergence
from lmscale.guard.guard import RewindRequest
from lmscale.guard.state import GuardState
from lmscale.history.history import (
    HISTORY,
    History,
    Rewind,
    Start,
    read_history,
    read_rewinds,
    record_rewind,
)
from lmscale.ranks.ranks import Ranks
from lmscale.runs.lease import NO_LEASE
from lmscale.train.session import rewind

REWIND = Rewind(
    number=1,
    at_step=30,
    to_step=20,
    to_n=240,
    jump_from_n=300,
    jump_samples=60,
    why="a spike",
    time=1.0,
)
WHERE = {"job": None, "restart": 0, "host": "h", "world_size": 1, "zero_stage": 1}
STARTS = tuple(
    {"event": "start", "attempt": number, "time": float(number), "first_step": first, **WHERE}
    for number, first in ((1, 0), (2, 16))
)


DIVERGENCE = Divergence(
    why="a spike",
    at_step=14,
    jump_from_n=150,
    jump_samples=12,
    not_after_step=12,
    limits=None,
    state=GuardState(),
)


def by(attempt):
    return {"attempt": attempt, "attempt_time": float(attempt)}


@pytest.fixture
def folder(tmp_path):
    record_rewind(tmp_path, REWIND)
    for row in STARTS:
        append_row(tmp_path / "attempts.jsonl", row)
    return tmp_path


def test_a_rewind_and_a_later_start_each_undo_what_they_have_to(folder):
    history = read_history(folder)
    said = {
        (step, attempt): history.undone(manifest_of(step, [], written_by=by(attempt)))
        for step, attempt in ((8, 1), (14, 1), (18, 1), (18, 2), (22, 2))
    }
    assert {key for key, why in said.items() if why is None} == {(8, 1), (14, 1), (18, 2)}
    assert "attempt 2 has gone on from step 16 since" in said[18, 1]
    assert "the guard has undone step 22 since" in said[22, 2]
    assert History().undone(manifest_of(22, [], written_by=by(1))) is None


def test_the_other_ranks_get_it_as_rank_0_has_read_it(folder):
    history = read_history(folder)
    travelled = json.loads(json.dumps(asdict(history)))
    assert checked(HISTORY, travelled) == history
    assert history.rewinds == (REWIND,) and history.starts == (
        Start(attempt=1, time=1.0, first_step=0),
        Start(attempt=2, time=2.0, first_step=16),
    )
    assert read_history(folder / "none") == History()


def run_at(folder, place):
    return SimpleNamespace(
        folder=folder,
        place=place,
        ranks=Ranks(),
        identity=IDENTITY,
        lease=NO_LEASE,
        history=History(),
        config=SimpleNamespace(guard=GuardConfig()),
        stream=SimpleNamespace(segments=()),
    )


def test_a_rewind_goes_back_to_what_a_start_would_take_up(tmp_path):
    # Step 10 is of an earlier attempt whose steps were done again, and nothing has replaced it.
    place = LocalPlace(tmp_path / "checkpoints")
    save(place, 8, written_by=by(1))
    save(place, 10, written_by=by(1))
    save(place, 11, state={})  # of which nobody knows how many samples were used
    for row in (STARTS[0], {**STARTS[1], "first_step": 8}):
        append_row(tmp_path / "attempts.jsonl", row)
    with one_group():
        rewind(run_at(tmp_path, place), RewindRequest(DIVERGENCE))
    assert [row.to_step for row in read_rewinds(tmp_path)] == [8]


def test_a_run_that_cannot_be_rewound_tells_all_that_the_search_has_found(tmp_path):
    place = LocalPlace(tmp_path / "checkpoints")
    save(place, 8, identity={**IDENTITY, "run": "another"})
    with one_group(), pytest.raises(GuardError) as caught:
        rewind(run_at(tmp_path, place), RewindRequest(DIVERGENCE))
    said = str(caught.value)
    assert "The run could not be rewound" in said
    assert "Give this run a folder of its own (run.folder), or set these back." in said
    assert said.count("another") == 1, "each reason once"
