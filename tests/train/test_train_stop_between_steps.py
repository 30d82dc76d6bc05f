"""Of two ranks the second is asked to stop while something other than a step is done."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from forked_ranks import one_group, run_starts
from rank_cases import Case, opened
from tiny_run import committed_steps

from lmscale.errors import DataError, LmscaleError
from lmscale.files.jsonl import read_rows
from lmscale.ranks.collectives import gather_json
from lmscale.runs.stop import StoppedError, StopRequests
from lmscale.stream.loader import LoadingStopped
from lmscale.train import scoring
from lmscale.train.saver import Saver
from lmscale.train.scoring import Evaluator, open_evaluator
from lmscale.train.session import open_run_attempt, train_until_rewound
from lmscale.train.votes import StopPoll

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
MOMENTS = ("starting", "saved 2", "scoring 3", "stalled after 1", "scoring 6")
SETTINGS = {"train.steps": 6, "checkpoint.every_steps": 2, "evaluation.every_steps": 3}
SETTINGS |= {"checkpoint.asynchronous": False}  # a save that the loop waits for


def start(folder, number):
    with one_group() as ranks:
        saw = {moment: stop_when(moment, folder, ranks) for moment in MOMENTS}
        saw["unprepared"] = fail_alone(folder, ranks)
    if ranks.is_first:
        (folder / "saw.json").write_text(json.dumps(saw))


def fail_alone(folder, ranks):
    """Of each rank, why the held-out sets could not be opened, when the second finds a tokenizer
    that it cannot read.
    """

    def plan(*_, **__):
        raise DataError("the second rank's tokenizer")

    with (
        opened(sets_case("alone", folder), ranks) as run,
        pytest.MonkeyPatch.context() as patch,
    ):
        if ranks.rank == 1:
            patch.setattr(scoring, "plan_evaluation", plan)
        try:
            with open_evaluator(run, None, StopPoll(lambda: None)):
                error = ""
        except LmscaleError as caught:
            error = str(caught)
        return gather_json(error)


def sets_case(name, folder):
    data = (folder / "data.txt").read_text()
    sets = {"evaluation.sets": {"a": f"{data}/shards/a/train"}, "evaluation.max_windows": 24}
    return Case(name=name, data=data, folder=str(folder / name), overrides=SETTINGS | sets)


def stop_when(moment, folder, ranks):
    """Of each rank, why it stopped; then what the run has done and saved."""
    moments = {"starting"}

    def requested():
        return "SIGUSR1" if ranks.rank == 1 and moment in moments else None

    with opened(sets_case(moment, folder), ranks) as run, pytest.MonkeyPatch.context() as patch:
        note_moments(patch, moments)
        if moment == "stalled after 1" and ranks.rank == 1:
            run = replace(run, loader=stalling(run.loader, moments))
        reason = None
        with StopRequests(run.folder) as stop, open_attempt_of(run) as attempt:
            try:
                train_until_rewound(run, stop, requested, attempt)
            except StoppedError as stopped:
                reason = stopped.reason
    ends = [row["reason"] for row in read_rows(run.folder / "attempts.jsonl") if "reason" in row]
    steps = len(read_rows(run.folder / "ledger.jsonl"))
    return [gather_json(reason), ends, steps, committed_steps(run.folder)]


def open_attempt_of(run):
    return open_run_attempt(run, began_at=0.0) if run.ranks.is_first else nullcontext()


def note_moments(patch, moments):
    save, score = Saver.save, Evaluator.score

    def noted_save(self, **how):
        save(self, **how)
        moments.add(f"saved {self._counter.now.step}")

    def noted_score(self, step, *rest, **more):
        moments.add(f"scoring {step}")
        score(self, step, *rest, **more)

    patch.setattr(Saver, "save", noted_save)
    patch.setattr(Evaluator, "score", noted_score)


def stalling(batches, moments):
    """No data come after the first step's, until the rank that waits for them gives up."""
    yield next(batches)
    moments.add("stalled after 1")
    raise LoadingStopped


@pytest.fixture(scope="module")
def stopped(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    (folder / "data.txt").write_text(str(tiny_data))
    run_starts(Path(__file__), folder, (2,))
    return json.loads((folder / "saw.json").read_text())


@pytest.mark.parametrize(
    ("moment", "steps", "saved"),
    [
        ("starting", 0, []),
        ("saved 2", 2, [2]),  # no further step is begun
        ("scoring 3", 3, [2, 3]),
        ("stalled after 1", 1, [1]),
        ("scoring 6", 6, [4, 6]),
    ],
)
def test_one_ranks_request_outside_a_step_stops_all_and_all_steps_are_saved(
    stopped, moment, steps, saved
):
    assert stopped[moment] == [["SIGUSR1"] * 2, ["SIGUSR1"], steps, saved]


def test_held_out_sets_that_one_rank_cannot_prepare_stop_all_before_the_first_step(stopped):
    assert all("the second rank's tokenizer" in error for error in stopped["unprepared"])
